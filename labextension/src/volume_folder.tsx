/** A volume's folder in the panel: browse, upload, download, rename, delete, look at a file. */

import { closeIcon, downloadIcon, editIcon, fileIcon, fileUploadIcon, folderIcon } from '@jupyterlab/ui-components';
import * as React from 'react';
import { ApiError, errorText } from './api';
import { askText, confirm, tried } from './dialogs';
import { Action, ListBody, Note, RowList } from './parts';
import { showFile } from './preview';
import { FolderEntry } from './protocol';
import { ITools, useList, useTools } from './tools';
import { sendFile } from './upload';
import { sizeText } from './words';

interface ITransfer {
  name: string;
  size: number;
  sent: number;
  cancel(): void;
  error?: string;
}

export function Folder(props: { volume: string; onChanged(): void }): JSX.Element {
  const tools = useTools();
  const { trans, api } = tools;
  const { volume } = props;
  const [path, setPath] = React.useState('');
  const [over, setOver] = React.useState(false);
  const picker = React.useRef<HTMLInputElement>(null);
  const list = useList(() => api.folder(volume, path), true, [api, volume, path]);
  const changed = (): void => {
    list.refresh();
    props.onChanged();
  };
  const [transfers, upload] = useUploads(tools, volume, path, changed);
  const join = (name: string): string => (path ? `${path}/${name}` : name);
  return (
    <div
      className={over ? 'cb-folder cb-over' : 'cb-folder'}
      onDragOver={event => {
        if (event.dataTransfer.types.includes('Files')) {
          event.preventDefault();
          event.stopPropagation();
          setOver(true);
        }
      }}
      onDragLeave={() => setOver(false)}
      onDrop={event => {
        event.preventDefault();
        event.stopPropagation();
        setOver(false);
        void upload([...event.dataTransfer.files]);
      }}
    >
      <div className="cb-line cb-path">
        <nav aria-label={trans.__('Folder')} className="cb-text">
          <button className="cb-crumb" onClick={() => setPath('')}>{volume}</button>
          {path.split('/').filter(Boolean).map((part, index, parts) => (
            <React.Fragment key={index}>
              {' / '}
              <button className="cb-crumb" onClick={() => setPath(parts.slice(0, index + 1).join('/'))}>{part}</button>
            </React.Fragment>
          ))}
        </nav>
        <span className="cb-actions">
          <Action icon={fileUploadIcon} label={trans.__('Upload files to %1', join('') || volume)} onClick={() => picker.current?.click()} />
        </span>
        <input
          ref={picker} type="file" multiple hidden aria-label={trans.__('Files to upload')}
          onChange={event => {
            void upload([...(event.target.files ?? [])]);
            event.target.value = '';
          }}
        />
      </div>
      {transfers.map(one => <Transfer key={one.name} transfer={one} />)}
      <ListBody list={list} rows={value => value.entries ?? []} empty={trans.__('Empty. Drop files here, or use the button above.')}>
        {(rows, value) => (
          <>
            <RowList label={trans.__('Files of %1', join('') || volume)} rows={rows} rowHeight={30} rowKey={row => row.name}>
              {row => <Entry entry={row} path={join(row.name)} volume={volume} onOpen={setPath} onChanged={changed} />}
            </RowList>
            {(value.entries_count ?? 0) > rows.length && (
              <Note>{trans.__('The first %1 of %2 are shown.', rows.length, value.entries_count)}</Note>
            )}
          </>
        )}
      </ListBody>
    </div>
  );
}

function Entry(props: { entry: FolderEntry; path: string; volume: string; onOpen(path: string): void; onChanged(): void }): JSX.Element {
  const tools = useTools();
  const { trans, api } = tools;
  const { entry, path, volume } = props;
  const folder = entry.kind === 'folder';
  const Icon = folder ? folderIcon : fileIcon;
  const rename = async (): Promise<void> => {
    const to = await askText(trans.__('Rename %1', entry.name), trans.__('New path in the volume'), path, trans.__('Rename'));
    if (to && to !== path && (await tried(trans.__('Not renamed'), () => api.change(volume, { renamed: [{ path, to }] })))) {
      props.onChanged();
    }
  };
  const remove = async (): Promise<void> => {
    const words = folder ? trans.__('It has %1 files, %2.', entry.files ?? 0, sizeText(entry.size_bytes ?? 0)) : sizeText(entry.size_bytes ?? 0);
    if (await confirm(trans, trans.__('Delete %1?', entry.name), words, trans.__('Delete'))) {
      await tried(trans.__('Not deleted'), () => api.change(volume, { deleted: [path] }));
      props.onChanged();
    }
  };
  return (
    <div className="cb-line">
      <Icon.react tag="span" className="cb-file-icon" aria-hidden="true" />
      <button
        className="cb-name" title={entry.name} onClick={() => (folder ? props.onOpen(path) : void showFile(tools, volume, path, entry.size_bytes ?? 0))}
      >
        {entry.name}
      </button>
      <span className="cb-dim cb-size">{sizeText(entry.size_bytes ?? 0)}</span>
      <span className="cb-actions">
        {entry.kind === 'file' && (
          <Action icon={downloadIcon} label={trans.__('Download %1', entry.name)} onClick={() => download(tools, volume, path)} />
        )}
        <Action icon={editIcon} label={trans.__('Rename %1', entry.name)} onClick={() => void rename()} />
        <Action icon={closeIcon} label={trans.__('Delete %1', entry.name)} onClick={() => void remove()} />
      </span>
    </div>
  );
}

function Transfer({ transfer }: { transfer: ITransfer }): JSX.Element {
  const { trans } = useTools();
  const percent = transfer.size ? Math.floor((transfer.sent / transfer.size) * 100) : 100;
  return (
    <div className="cb-transfer">
      <div className="cb-line">
        <span className="cb-text" title={transfer.name}>{transfer.name}</span>
        <span className="cb-dim">{transfer.error ? '' : `${percent} %`}</span>
        <Action icon={closeIcon} label={transfer.error ? trans.__('Close') : trans.__('Cancel the upload of %1', transfer.name)} onClick={transfer.cancel} />
      </div>
      {transfer.error ? <div className="cb-warning" role="alert">{transfer.error}</div> : <progress max={100} value={percent} aria-label={transfer.name} />}
    </div>
  );
}

type Uploads = [ITransfer[], (files: File[]) => Promise<void>];

function useUploads(tools: ITools, volume: string, folder: string, done: () => void): Uploads {
  const { trans, api } = tools;
  const [transfers, setTransfers] = React.useState<ITransfer[]>([]);
  const set = (name: string, change: Partial<ITransfer> | null): void =>
    setTransfers(now => now.flatMap(one => (one.name !== name ? [one] : change ? [{ ...one, ...change }] : [])));
  const one = async (file: File): Promise<void> => {
    const path = folder ? `${folder}/${file.name}` : file.name;
    const stop = new AbortController();
    const cancel = (): void => {
      stop.abort();
      set(path, null);
    };
    setTransfers(now => [...now.filter(other => other.name !== path), { name: path, size: file.size, sent: 0, cancel }]);
    const sender = {
      send: (piece: Blob, signal: AbortSignal) => api.chunk(volume, piece, signal),
      pause: (milliseconds: number) => new Promise<void>(resolve => setTimeout(resolve, milliseconds))
    };
    try {
      const sent = await sendFile(file, path, sender, stop.signal, bytes => set(path, { sent: bytes }));
      await publish(tools, volume, sent);
      set(path, null);
      done();
    } catch (error) {
      if (!stop.signal.aborted) {
        set(path, { error: trans.__('Not uploaded: %1', errorText(error)) });
      }
    }
  };
  return [transfers, async files => {
    for (const file of files) {
      await one(file);
    }
  }];
}

/** Commit an uploaded file; what is there is replaced only when the person says so. */
async function publish({ trans, api }: ITools, volume: string, file: Awaited<ReturnType<typeof sendFile>>): Promise<void> {
  try {
    await api.change(volume, { files: [file] });
  } catch (error) {
    if (!(error instanceof ApiError && error.info.code === 'request.conflict')) {
      throw error;
    }
    if (await confirm(trans, trans.__('Replace %1?', file.path), trans.__('It is in the volume already.'), trans.__('Replace'))) {
      await api.change(volume, { files: [file], overwrite: true });
    }
  }
}

function download({ api }: ITools, volume: string, path: string): void {
  const link = document.createElement('a');
  link.href = api.fileUrl(volume, path);
  link.download = '';
  link.click();
}
