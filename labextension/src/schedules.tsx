/** "Schedules": notebooks that run by themselves. */

import { caretDownIcon, caretRightIcon, closeIcon, pauseIcon, runIcon } from '@jupyterlab/ui-components';
import * as React from 'react';
import { confirm, tried } from './dialogs';
import { parseUsd, usdText } from './money';
import { Action, ListBody, RowList, Section } from './parts';
import { RunRow, ScheduleRow, Status } from './protocol';
import { ITools, useList, useTools } from './tools';
import { ageText, fileName } from './words';

export function Schedules(props: { status: Status | null; open: boolean }): JSX.Element {
  const { trans, api } = useTools();
  const list = useList(api.schedules, props.open && !!props.status, [api]);
  const [opened, setOpened] = React.useState('');
  return (
    <Section id="schedules" title={trans.__('Schedules')} note={list.value ? String(list.value.rows?.length ?? 0) : ''} open={props.open}>
      <ListBody
        list={list} rows={value => value.rows ?? []}
        empty={
          <>
            {trans.__('No schedules yet. A notebook runs by itself with')} <code>cellburst schedule create</code>
          </>
        }
      >
        {rows => (
          <RowList label={trans.__('Schedules')} rows={rows} rowHeight={72} rowKey={row => row.id}>
            {row => <Schedule row={row} open={row.id === opened} onOpen={setOpened} refresh={list.refresh} />}
          </RowList>
        )}
      </ListBody>
      {list.value?.rows?.some(row => row.id === opened) && <Runs schedule={opened} key={opened} />}
    </Section>
  );
}

function Schedule(props: { row: ScheduleRow; open: boolean; onOpen(id: string): void; refresh(): void }): JSX.Element {
  const tools = useTools();
  const { trans, api } = tools;
  const { row, open } = props;
  const act = async (words: string, action: () => Promise<unknown>): Promise<void> => {
    await tried(words, action);
    props.refresh();
  };
  const remove = async (): Promise<void> => {
    const words = trans.__('Its runs and what they wrote are deleted too. The notebook itself stays.');
    if (await confirm(trans, trans.__('Delete %1?', row.name), words, trans.__('Delete'))) {
      await act(trans.__('The schedule was not deleted'), () => api.deleteSchedule(row.id));
    }
  };
  const Caret = open ? caretDownIcon : caretRightIcon;
  const paused = row.state === 'paused';
  return (
    <>
      <div className="cb-line">
        <button className="cb-name" aria-expanded={open} title={row.notebook} onClick={() => props.onOpen(open ? '' : row.id)}>
          <Caret.react tag="span" className="cb-caret" aria-hidden="true" />
          {row.name}
        </button>
        <span className="cb-actions">
          <Action icon={runIcon} label={trans.__('Run %1 now', row.name)} onClick={() => void act(trans.__('It was not run'), () => api.runSchedule(row.id))} />
          {row.state !== 'done' && (
            <Action
              icon={pauseIcon} pressed={paused} label={paused ? trans.__('Let %1 go on', row.name) : trans.__('Pause %1', row.name)}
              onClick={() => void act(trans.__('It was not changed'), () => api.pauseSchedule(row.id, !paused))}
            />
          )}
          <Action icon={closeIcon} label={trans.__('Delete %1', row.name)} onClick={() => void remove()} />
        </span>
      </div>
      <div className="cb-line cb-dim">
        <span className="cb-text" title={row.notebook}>{row.words || fileName(row.notebook)}</span>
        <span>{usdText(parseUsd(row.cost_usd))}</span>
      </div>
      <div className="cb-line cb-dim">
        <span className="cb-text">{nextText(tools, row)}</span>
        {row.last && <span className={`cb-run-${row.last.state}`}>{runWord(tools, row.last)}</span>}
      </div>
    </>
  );
}

function Runs({ schedule }: { schedule: string }): JSX.Element {
  const tools = useTools();
  const { trans, api } = tools;
  const list = useList(() => api.runs(schedule), true, [api, schedule]);
  return (
    <div className="cb-folder">
      <ListBody list={list} rows={value => value.rows ?? []} empty={trans.__('It has not run yet.')}>
        {rows => (
          <RowList label={trans.__('Runs')} rows={rows} rowHeight={26} rowKey={run => run.id}>
            {run => (
              <div className="cb-line" title={run.error?.message ?? run.notes?.join('\n')}>
                <span className="cb-text">{new Date(run.instant_unix_seconds * 1000).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'short' })}</span>
                <span className={`cb-run-${run.state}`}>{runWord(tools, run)}</span>
                <span className="cb-dim">{took(run)}</span>
                <span className="cb-dim">{usdText(parseUsd(run.cost_usd))}</span>
              </div>
            )}
          </RowList>
        )}
      </ListBody>
    </div>
  );
}

function nextText({ trans }: ITools, row: ScheduleRow): string {
  if (row.state !== 'active' || !row.next_unix_seconds) {
    return row.state === 'paused' ? trans.__('paused') : trans.__('no further time');
  }
  const next = new Date(row.next_unix_seconds * 1000);
  return trans.__('next %1', next.toLocaleString(undefined, { weekday: 'short', hour: '2-digit', minute: '2-digit', day: 'numeric', month: 'short' }));
}

function runWord({ trans }: ITools, run: RunRow): string {
  const words: Record<RunRow['state'], string> = {
    queued: trans.__('queued'),
    starting: trans.__('starting'),
    running: trans.__('running'),
    succeeded: trans.__('succeeded'),
    failed: trans.__('failed'),
    cancelled: trans.__('cancelled'),
    lost: trans.__('lost'),
    skipped: trans.__('skipped'),
    missed: trans.__('missed')
  };
  return words[run.state];
}

function took(run: RunRow): string {
  return run.started_unix_seconds && run.ended_unix_seconds ? ageText(run.ended_unix_seconds - run.started_unix_seconds) : '';
}
