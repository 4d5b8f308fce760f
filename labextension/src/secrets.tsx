/** "Secrets": names and keys, never values. */

import { addIcon, closeIcon, editIcon, linkIcon } from '@jupyterlab/ui-components';
import * as React from 'react';
import { confirm, tried } from './dialogs';
import { Action, ListBody, Note, RowList, Section, UsedBy } from './parts';
import { SecretRow, Status } from './protocol';
import { ISecretForm, askSecret } from './secret_form';
import { ITools, useList, useTools } from './tools';
import { ageText } from './words';

export function Secrets(props: { status: Status | null; open: boolean }): JSX.Element {
  const tools = useTools();
  const { trans, api } = tools;
  const list = useList(api.secrets, props.open && !!props.status, [api]);
  const add = async (): Promise<void> => {
    if (await askSecret(trans, form => tried(trans.__('The secret was not made'), () => api.putSecret(form.name, form.values, 'create')))) {
      list.refresh();
    }
  };
  return (
    <Section
      id="secrets" title={trans.__('Secrets')} note={list.value ? String(list.value.rows?.length ?? 0) : ''} open={props.open}
      actions={<Action icon={addIcon} label={trans.__('New secret')} onClick={() => void add()} disabled={!props.status} />}
    >
      <ListBody
        list={list} rows={value => value.rows ?? []}
        empty={
          <>
            {trans.__('No secrets yet. Keys of services, encrypted here and given only to cells that name them:')} <code>secrets=NAME</code>
          </>
        }
      >
        {rows => (
          <RowList label={trans.__('Secrets')} rows={rows} rowHeight={72} rowKey={row => `${row.store}/${row.name}`}>
            {row => <Secret row={row} refresh={list.refresh} />}
          </RowList>
        )}
      </ListBody>
      {list.value?.notes?.map((note, index) => <Note key={index}>{note}</Note>)}
    </Section>
  );
}

function Secret({ row, refresh }: { row: SecretRow; refresh(): void }): JSX.Element {
  const tools = useTools();
  const { trans, api, notebook } = tools;
  const mine = (row.store ?? 'local') === 'local';
  const used = !!notebook.used.secrets?.includes(row.name);
  const [, again] = React.useReducer((count: number) => count + 1, 0);
  const toggle = (): void => {
    notebook.change(now => ({
      ...now,
      secrets: used ? (now.secrets ?? []).filter(name => name !== row.name) : [...(now.secrets ?? []), row.name]
    }));
    again();
  };
  const replace = async (): Promise<void> => {
    const save = (form: ISecretForm): Promise<boolean> =>
      tried(trans.__('The secret was not replaced'), () => api.putSecret(row.name, form.values, 'replace'));
    if (await askSecret(trans, save, row.name, row.keys ?? [])) {
      refresh();
    }
  };
  const remove = async (): Promise<void> => {
    const users = row.used_by ?? [];
    const words = users.length
      ? trans.__('It is used by %1, which will fail. Its values cannot be brought back.', users.join(', '))
      : trans.__('Cells and schedules that name it will fail. Its values cannot be brought back.');
    if (await confirm(trans, trans.__('Delete %1?', row.name), words, trans.__('Delete'))) {
      await tried(trans.__('The secret was not deleted'), () => api.deleteSecret(row.name));
      refresh();
    }
  };
  return (
    <>
      <div className="cb-line">
        <span className="cb-name cb-name-plain" title={row.name}>{row.name}</span>
        {!mine && <span className="cb-tag">{row.store}</span>}
        <span className="cb-actions">
          <Action
            icon={linkIcon} pressed={used} disabled={!notebook.path} onClick={toggle}
            label={
              !notebook.path ? trans.__('Open a notebook to use %1 in it', row.name)
              : used ? trans.__('Do not use %1 in this notebook', row.name) : trans.__('Use %1 in this notebook', row.name)
            }
          />
          {mine && <Action icon={editIcon} label={trans.__('Replace the values of %1', row.name)} onClick={() => void replace()} />}
          {mine && <Action icon={closeIcon} label={trans.__('Delete %1', row.name)} onClick={() => void remove()} />}
        </span>
      </div>
      <div className="cb-line cb-dim cb-keys-line">
        <span className="cb-text cb-keys" title={(row.keys ?? []).join(', ')}>{(row.keys ?? []).join(', ')}</span>
        <span>{row.sealed ? trans.__('sealed') : lastUsed(tools, row)}</span>
      </div>
      <UsedBy users={row.used_by} />
      {row.sealed && <div className="cb-dim cb-warning">{row.sealed}</div>}
    </>
  );
}

function lastUsed({ trans }: ITools, row: SecretRow): string {
  return row.last_used_unix_seconds ? trans.__('used %1 ago', ageText(Date.now() / 1000 - row.last_used_unix_seconds)) : trans.__('never used');
}
