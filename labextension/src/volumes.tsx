/** "Volumes": the list. A volume opens in place as a folder (volume_folder.tsx). Below it what else volumes= shows (shareds.tsx). */

import { addIcon, caretDownIcon, caretRightIcon, closeIcon, editIcon } from '@jupyterlab/ui-components';
import * as React from 'react';
import { askText, confirm, deleted, tried } from './dialogs';
import { Action, ListBody, RowList, Section, UsedBy } from './parts';
import { Status, VolumeRow } from './protocol';
import { Buckets, Shareds } from './shareds';
import { ITools, useList, useTools } from './tools';
import { UseAction, usedAt } from './use_action';
import { Folder } from './volume_folder';
import { sizeText } from './words';

export function Volumes(props: { status: Status | null; open: boolean }): JSX.Element {
  const tools = useTools();
  const { trans, api } = tools;
  const list = useList(api.volumes, props.open && !!props.status, [api]);
  const [opened, setOpened] = React.useState('');
  const rows = (list.value?.rows ?? []).filter(row => !row.ephemeral);
  const add = async (): Promise<void> => {
    const name = await askText(trans.__('New volume'), trans.__('Name: letters, digits, ".", "_" and "-"'), '', trans.__('Create'));
    if (name && (await tried(trans.__('The volume was not made'), () => api.createVolume(name)))) {
      setOpened(name);
      list.refresh();
    }
  };
  const one = rows.find(row => row.name === opened);
  return (
    <Section
      id="volumes" title={trans.__('Volumes')} note={list.value ? String(rows.length) : ''} open={props.open}
      actions={<Action icon={addIcon} label={trans.__('New volume')} onClick={() => void add()} disabled={!props.status} />}
    >
      <ListBody
        list={list} rows={() => rows}
        empty={
          <>
            {trans.__('No volumes yet. Files that outlive containers, seen by every cell that names them:')} <code>volumes=/data:NAME</code>
          </>
        }
      >
        {() => (
          <RowList label={trans.__('Volumes')} rows={rows} rowHeight={72} rowKey={row => row.id}>
            {row => <Volume row={row} open={row.name === opened} onOpen={setOpened} refresh={list.refresh} />}
          </RowList>
        )}
      </ListBody>
      {one && <Folder volume={one.name} key={one.id} onChanged={list.refresh} />}
      {list.value && <Shareds active={props.open && !!props.status} />}
      {props.status && <Buckets status={props.status} />}
    </Section>
  );
}

function Volume({ row, open, onOpen, refresh }: { row: VolumeRow; open: boolean; onOpen(name: string): void; refresh(): void }): JSX.Element {
  const tools = useTools();
  const { trans, notebook } = tools;
  const [, again] = React.useReducer((count: number) => count + 1, 0);
  const path = usedAt(tools, row.name);
  const rename = async (): Promise<void> => {
    const to = await askText(trans.__('Rename %1', row.name), trans.__('New name'), row.name, trans.__('Rename'));
    if (to && to !== row.name && (await renamed(tools, row, to))) {
      if (path) {
        notebook.change(used => ({ ...used, volumes: { ...used.volumes, [path]: to } }));
      }
      onOpen(open ? to : '');
      refresh();
    }
  };
  const Caret = open ? caretDownIcon : caretRightIcon;
  const count = row.files ?? 0;
  return (
    <>
      <div className="cb-line">
        <button className="cb-name" aria-expanded={open} title={row.name} onClick={() => onOpen(open ? '' : row.name)}>
          <Caret.react tag="span" className="cb-caret" aria-hidden="true" />
          {row.name}
        </button>
        <span className="cb-actions">
          <UseAction volume={row.name} title={row.name} onUsed={again} />
          <Action icon={editIcon} label={trans.__('Rename %1', row.name)} onClick={() => void rename()} />
          <Action
            icon={closeIcon} label={trans.__('Delete %1', row.name)}
            onClick={async () => {
              if (await removed(tools, row)) {
                onOpen('');
                refresh();
              }
            }}
          />
        </span>
      </div>
      <div className="cb-line cb-dim">
        <span className="cb-text">
          {sizeText(row.size_bytes ?? 0)} · {trans._n('%1 file', '%1 files', count)}
          {path ? ` · ${path}` : ''}
        </span>
      </div>
      <UsedBy users={row.used_by} />
    </>
  );
}

/** Give it another name; where something names it, ask before. */
async function renamed({ trans, api }: ITools, row: VolumeRow, to: string): Promise<boolean> {
  let done = false;
  await tried(trans.__('The volume was not renamed'), async () => {
    const users = (await api.volumes()).rows?.find(one => one.id === row.id)?.used_by ?? [];
    const words = trans.__('It is used by %1. What names it %2, a schedule or a cell, does not find it any more: change the name there too.', users.join(', '), row.name);
    if (!users.length || (await confirm(trans, trans.__('Rename %1?', row.name), words, trans.__('Rename')))) {
      await api.renameVolume(row.name, to);
      done = true;
    }
  });
  return done;
}

/** Ask, naming what uses it, and delete. */
function removed({ trans, api }: ITools, row: VolumeRow): Promise<boolean> {
  const users = row.used_by ?? [];
  const words = users.length
    ? trans.__('It is used by %1. Its files cannot be brought back.', users.join(', '))
    : trans.__('Its %1 files cannot be brought back.', row.files ?? 0);
  return deleted(trans, row.name, words, trans.__('The volume was not deleted'), users.length > 0, used =>
    api.deleteVolume(row.name, used)
  );
}
