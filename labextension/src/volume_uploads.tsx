/** Uploads to a volume as its folder shows them, and what may be dropped on it. */

import { closeIcon, fileUploadIcon, refreshIcon } from '@jupyterlab/ui-components';
import * as React from 'react';
import { tried } from './dialogs';
import { CONTENTS_MIME, droppedFiles, ILabDrag, serverFiles } from './drops';
import { Action } from './parts';
import { useTools } from './tools';
import { ITransfer } from './uploads';
import { sizeText } from './words';

const SHOWN = 20;

/** The transfers of a volume, rendered again when any changes. */
export function useTransfers(volume: string): ITransfer[] {
  const { uploads } = useTools();
  const [, again] = React.useReducer((count: number) => count + 1, 0);
  React.useEffect(() => {
    const slot = (): void => again();
    uploads.changed.connect(slot);
    return () => {
      uploads.changed.disconnect(slot);
    };
  }, [uploads]);
  return uploads.of(volume);
}

export interface IUpload {
  /** Files that a person picked, for another folder than the one that is shown if `into` says so. */
  files(files: File[], into?: string): void;
  /** A drop of the desktop's. */
  drop(transfer: DataTransfer): void;
  /** A drop of the file browser's. */
  paths(paths: string[]): void;
}

/** Uploads into a folder of a volume. */
export function useUpload(volume: string, folder: string, done: () => void): IUpload {
  const { trans, uploads, contents, api } = useTools();
  const join = (path: string, into = folder): string => (into ? `${into}/${path}` : path);
  const failed = trans.__('Not uploaded');
  return {
    files: (files, into) => void uploads.add(volume, files.map(file => ({ path: join(file.name, into), file })), done),
    drop: transfer => {
      const coming = droppedFiles(transfer);
      void tried(failed, async () => {
        const files = await coming;
        await uploads.add(volume, files.map(({ path, file }) => ({ path: join(path), file })), done);
      });
    },
    paths: paths =>
      void tried(failed, async () => {
        const files = await serverFiles(contents, api.settings, paths);
        await uploads.addServerFiles(volume, files.map(file => ({ path: join(file.path), file })), done);
      })
  };
}

/** Lumino's own drags end on an element as events of theirs; `over` says that one may be dropped. */
export function useLabDrops(node: React.RefObject<HTMLElement | null>, over: (is: boolean) => void, drop: (paths: string[]) => void): void {
  const latest = React.useRef({ over, drop });
  latest.current = { over, drop };
  React.useEffect(() => {
    const element = node.current;
    if (!element) {
      return;
    }
    const take = (event: Event): void => {
      const drag = event as ILabDrag;
      if (!drag.mimeData.hasData(CONTENTS_MIME)) {
        return;
      }
      event.preventDefault();
      event.stopPropagation();
      drag.dropAction = event.type === 'lm-dragleave' ? 'none' : drag.proposedAction;
      latest.current.over(event.type === 'lm-dragenter' || event.type === 'lm-dragover');
      if (event.type === 'lm-drop') {
        latest.current.drop(drag.mimeData.getData(CONTENTS_MIME) as string[]);
      }
    };
    const kinds = ['lm-dragenter', 'lm-dragover', 'lm-dragleave', 'lm-drop'];
    kinds.forEach(kind => element.addEventListener(kind, take));
    return () => kinds.forEach(kind => element.removeEventListener(kind, take));
  }, [node]);
}

export function Transfers(props: { transfers: ITransfer[]; onPick(transfer: ITransfer): void }): JSX.Element {
  const { trans } = useTools();
  const { transfers } = props;
  return (
    <>
      {transfers.slice(0, SHOWN).map(one => <Transfer key={one.path} transfer={one} onPick={props.onPick} />)}
      {transfers.length > SHOWN && <div className="cb-dim cb-transfer">{trans.__('and %1 more files', transfers.length - SHOWN)}</div>}
    </>
  );
}

function Transfer({ transfer, onPick }: { transfer: ITransfer; onPick(transfer: ITransfer): void }): JSX.Element {
  const { trans, uploads } = useTools();
  const { path, size, sent, state, error, origin } = transfer;
  const percent = size ? Math.min(100, Math.floor((sent / size) * 100)) : state === 'running' ? 100 : 0;
  const over = state === 'failed' || state === 'stopped';
  return (
    <div className="cb-transfer" data-state={state}>
      <div className="cb-line">
        <span className="cb-text" title={path}>{path}</span>
        <span className="cb-dim">{state === 'waiting' ? trans.__('waits') : trans.__('%1 % of %2', percent, sizeText(size))}</span>
        {over && !origin && <Action icon={fileUploadIcon} label={trans.__('Pick %1 again', path)} onClick={() => onPick(transfer)} />}
        {over && origin && <Action icon={refreshIcon} label={trans.__('Go on with %1', path)} onClick={() => void uploads.goOn(transfer)} />}
        <Action
          icon={closeIcon} label={over ? trans.__('Forget the upload of %1', path) : trans.__('Cancel the upload of %1', path)}
          onClick={() => uploads.forget(transfer)}
        />
      </div>
      <progress max={100} value={percent} aria-label={path} />
      {state === 'failed' && (
        <div className="cb-warning" role="alert">
          {trans.__('Not uploaded: %1', error)}
          <div>{origin ? trans.__('Go on with the button above: what was sent is not sent twice.') : trans.__('Pick the file again: what was sent is not sent twice.')}</div>
        </div>
      )}
      {state === 'stopped' && (
        <div className="cb-dim">{trans.__('The page was closed meanwhile. Pick the file again: it goes on where it was.')}</div>
      )}
    </div>
  );
}
