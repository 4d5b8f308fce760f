/** Below the volumes: network file systems, which open in place as volumes do, and the buckets that sessions have mounted now. */

import { addIcon, caretDownIcon, caretRightIcon, closeIcon } from '@jupyterlab/ui-components';
import * as React from 'react';
import { SHARED } from './api';
import { askText, deleted, tried } from './dialogs';
import { Action, ListBody, RowList, UsedBy } from './parts';
import { BucketSource, SharedRow, SharedSize, Status } from './protocol';
import { ITools, useList, useTools } from './tools';
import { UseAction, usedAt } from './use_action';
import { Folder } from './volume_folder';
import { sessionTitle, sizeText } from './words';

/** A heading inside of a section. */
function Part(props: { title: string; actions?: React.ReactNode; children: React.ReactNode }): JSX.Element {
  return (
    <div className="cb-part" role="group" aria-label={props.title}>
      <div className="cb-part-head">
        <h4 className="cb-text">{props.title}</h4>
        {props.actions}
      </div>
      {props.children}
    </div>
  );
}

export function Shareds(props: { active: boolean }): JSX.Element {
  const { trans, api } = useTools();
  const list = useList(api.shareds, props.active, [api]);
  const [opened, setOpened] = React.useState('');
  const [changes, changed] = React.useReducer((count: number) => count + 1, 0);
  const rows = list.value?.rows ?? [];
  const title = trans.__('Network file systems');
  const add = async (): Promise<void> => {
    const name = await askText(trans.__('New network file system'), trans.__('Name: letters, digits, ".", "_" and "-"'), '', trans.__('Create'));
    if (name && (await tried(trans.__('The network file system was not made'), () => api.createShared(name)))) {
      setOpened(name);
      list.refresh();
    }
  };
  const one = rows.find(row => row.name === opened);
  return (
    <Part title={title} actions={<Action icon={addIcon} label={trans.__('New network file system')} onClick={() => void add()} disabled={!props.active} />}>
      <ListBody
        list={list} rows={() => rows}
        empty={
          <>
            {trans.__('None yet. A folder that containers share live, on workers of the gateway\'s machine:')} <code>volumes=/data:nfs://NAME</code>
          </>
        }
      >
        {() => (
          <RowList label={title} rows={rows} rowHeight={72} rowKey={row => row.name}>
            {row => <Shared row={row} open={row.name === opened} changes={changes} onOpen={setOpened} refresh={list.refresh} />}
          </RowList>
        )}
      </ListBody>
      {one && <Folder volume={SHARED + one.name} key={one.name} onChanged={changed} />}
    </Part>
  );
}

function Shared(props: { row: SharedRow; open: boolean; changes: number; onOpen(name: string): void; refresh(): void }): JSX.Element {
  const tools = useTools();
  const { trans, api } = tools;
  const { row, open, onOpen } = props;
  const [, again] = React.useReducer((count: number) => count + 1, 0);
  const [size, setSize] = React.useState<SharedSize | null>(null);
  React.useEffect(() => {
    // The gateway looks at each file for it: not with every look at the list.
    let here = true;
    api.sharedSize(row.name).then(got => here && setSize(got), () => undefined);
    return () => {
      here = false;
    };
  }, [api, row.name, row.changed_unix_seconds, open ? props.changes : 0]);
  const path = usedAt(tools, SHARED + row.name);
  const Caret = open ? caretDownIcon : caretRightIcon;
  const words = [size ? sizeWords(tools, size) : '', path ?? ''].filter(Boolean).join(' · ');
  return (
    <>
      <div className="cb-line">
        <button className="cb-name" aria-expanded={open} title={row.name} onClick={() => onOpen(open ? '' : row.name)}>
          <Caret.react tag="span" className="cb-caret" aria-hidden="true" />
          {row.name}
        </button>
        <span className="cb-actions">
          <UseAction volume={SHARED + row.name} title={row.name} onUsed={again} />
          <Action
            icon={closeIcon} label={trans.__('Delete %1', row.name)}
            onClick={async () => {
              if (await removed(tools, row)) {
                onOpen('');
                props.refresh();
              }
            }}
          />
        </span>
      </div>
      <div className="cb-line cb-dim">
        <span className="cb-text">{words}</span>
      </div>
      <UsedBy users={row.used_by} />
    </>
  );
}

function sizeWords({ trans }: ITools, size: SharedSize): string {
  const files = size.files ?? 0;
  const text = `${sizeText(size.size_bytes ?? 0)} · ${trans._n('%1 file', '%1 files', files)}`;
  return size.whole === false ? trans.__('more than %1', text) : text;
}

/** Ask, naming what uses it, and delete. */
function removed({ trans, api }: ITools, row: SharedRow): Promise<boolean> {
  const users = row.used_by ?? [];
  const words = users.length
    ? trans.__('It is used by %1. What it holds cannot be brought back.', users.join(', '))
    : trans.__('What it holds cannot be brought back.');
  return deleted(trans, row.name, words, trans.__('The network file system was not deleted'), users.length > 0, used =>
    api.deleteShared(row.name, used)
  );
}

/** What containers have mounted now. Nothing where none has a bucket: they are made and kept elsewhere. */
export function Buckets({ status }: { status: Status }): JSX.Element | null {
  const tools = useTools();
  const { trans, openPath } = tools;
  const rows = (status.sessions ?? []).flatMap(session =>
    session.container ? (session.volumes ?? []).filter(mount => mount.kind === 'bucket').map(mount => ({ session, mount })) : []
  );
  if (rows.length === 0) {
    return null;
  }
  return (
    <Part title={trans.__('Buckets in containers')}>
      <RowList label={trans.__('Buckets in containers')} rows={rows} rowHeight={48} rowKey={({ session, mount }) => `${session.id} ${mount.path}`}>
        {({ session, mount }) => (
          <>
            <div className="cb-line">
              <span className="cb-text" title={mount.name}>{mount.name}</span>
              <span className="cb-tag cb-tag-plain">{mount.read_only ? trans.__('read-only') : trans.__('writable')}</span>
            </div>
            <div className="cb-line cb-dim">
              <button className="cb-crumb cb-text" title={bucketWords(tools, session.notebook, mount.bucket)} onClick={() => openPath(session.notebook)}>
                {trans.__('%1 in %2', mount.path, sessionTitle(session))}
              </button>
            </div>
          </>
        )}
      </RowList>
    </Part>
  );
}

function bucketWords({ trans }: ITools, notebook: string, bucket: BucketSource | null | undefined): string {
  return [notebook, bucket?.endpoint_url, bucket?.secret && trans.__('secret %1', bucket.secret)].filter(Boolean).join('\n');
}
