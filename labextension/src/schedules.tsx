/** "Schedules": notebooks that run by themselves. */

import { addIcon, caretDownIcon, caretRightIcon, closeIcon, editIcon, notebookIcon, pauseIcon, runIcon, stopIcon } from '@jupyterlab/ui-components';
import * as React from 'react';
import { confirm, showLogs, tried } from './dialogs';
import { parseUsd, usdText } from './money';
import { Action, ListBody, RowList, Section } from './parts';
import { RunRow, ScheduleRow, Status } from './protocol';
import { Problem } from './schedule_fields';
import { ITools, useList, useTools } from './tools';
import { ageText, fileName, sizeText } from './words';

const ROW_PIXELS = 72;
const CHANGED_PIXELS = 26;

export function Schedules(props: { status: Status | null; open: boolean }): JSX.Element {
  const { trans, api, forms, notebook } = useTools();
  const list = useList(api.schedules, props.open && !!props.status, [api]);
  const [opened, setOpened] = React.useState('');
  React.useEffect(() => {
    const slot = (): void => list.refresh();
    forms.saved.connect(slot);
    return () => {
      forms.saved.disconnect(slot);
    };
  }, [forms, list.refresh]);
  const changed = list.value?.changed ?? [];
  const gone = list.value?.gone ?? [];
  const row = list.value?.rows?.find(one => one.id === opened);
  const add = (): void => {
    if (notebook.path) {
      void forms.create(notebook.path);
    } else {
      void tried(trans.__('There is no notebook in front'), () => Promise.reject(new Error(trans.__('Open the one that is to be scheduled, then press this again.'))));
    }
  };
  return (
    <Section
      id="schedules" title={trans.__('Schedules')} note={list.value ? String(list.value.rows?.length ?? 0) : ''} open={props.open}
      actions={<Action icon={addIcon} label={trans.__('Schedule the notebook in front')} onClick={add} />}
    >
      <ListBody
        list={list} rows={value => value.rows ?? []}
        empty={trans.__('No schedules yet. Open a notebook and press + here, or "Schedule…" in its toolbar.')}
      >
        {rows => (
          <RowList label={trans.__('Schedules')} rows={rows} rowHeight={ROW_PIXELS + (changed.length + gone.length ? CHANGED_PIXELS : 0)} rowKey={one => one.id}>
            {one => (
              <Schedule
                row={one} changed={changed.includes(one.id)} gone={gone.includes(one.id)} open={one.id === opened} onOpen={setOpened}
                refresh={list.refresh}
              />
            )}
          </RowList>
        )}
      </ListBody>
      {row && <Runs schedule={row} key={opened} />}
    </Section>
  );
}

function Schedule(props: {
  row: ScheduleRow; changed: boolean; gone: boolean; open: boolean; onOpen(id: string): void; refresh(): void;
}): JSX.Element {
  const tools = useTools();
  const { trans, api, forms } = tools;
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
          <Action icon={editIcon} label={trans.__('Change %1', row.name)} onClick={() => forms.edit(row.id, row.name)} />
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
      {props.gone && (
        <div className="cb-line cb-changed">
          <span className="cb-text cb-warning" title={row.notebook}>{trans.__('its notebook is gone: runs have the one that was kept')}</span>
        </div>
      )}
      {props.changed && (
        <div className="cb-line cb-changed">
          <span className="cb-text cb-warning" title={row.notebook}>{trans.__('the notebook has changed since')}</span>
          <button
            className="cb-link" aria-label={trans.__('Take the change of %1 over', row.name)}
            onClick={() => void act(trans.__('The change was not taken over'), () => api.takeNotebook(row.id))}
          >
            {trans.__('Take over')}
          </button>
        </div>
      )}
    </>
  );
}

function Runs({ schedule }: { schedule: ScheduleRow }): JSX.Element {
  const tools = useTools();
  const { trans, api, forms } = tools;
  const list = useList(() => api.runs(schedule.id), true, [api, schedule.id]);
  const [opened, setOpened] = React.useState('');
  // A run that was started or has ended is shown at once, not at the next look.
  const seen = `${schedule.last?.id} ${schedule.last?.state}`;
  React.useEffect(() => list.refresh(), [seen]);
  const shown = list.value?.rows?.find(run => run.id === opened);
  return (
    <div className="cb-folder">
      <ListBody list={list} rows={value => value.rows ?? []} empty={trans.__('It has not run yet. Press ▷ above to run it now.')}>
        {rows => (
          <RowList label={trans.__('Runs')} rows={rows} rowHeight={26} rowKey={run => run.id}>
            {run => {
              const Caret = run.id === opened ? caretDownIcon : caretRightIcon;
              return (
                <div className="cb-line" title={run.error?.message ?? run.notes?.join('\n')}>
                  <button
                    className="cb-name" aria-expanded={run.id === opened} aria-label={trans.__('What the run of %1 left', runTime(run))}
                    onClick={() => setOpened(run.id === opened ? '' : run.id)}
                  >
                    <Caret.react tag="span" className="cb-caret" aria-hidden="true" />
                    {runTime(run)}
                  </button>
                  <span className={`cb-run-${run.state}`}>{runWord(tools, run)}</span>
                  <span className="cb-dim cb-size">{took(run)}</span>
                  <span className="cb-dim cb-size">{usdText(parseUsd(run.cost_usd))}</span>
                  {ACTIVE.includes(run.state) && (
                    <Action
                      icon={stopIcon} label={trans.__('End the run of %1', runTime(run))}
                      onClick={() => void tried(trans.__('It was not ended'), () => api.cancelRun(run.id)).then(list.refresh)}
                    />
                  )}
                  {run.has_notebook && (
                    <Action icon={notebookIcon} label={trans.__('Open what the run of %1 wrote', runTime(run))} onClick={() => forms.openRun(run, schedule.notebook)} />
                  )}
                </div>
              );
            }}
          </RowList>
        )}
      </ListBody>
      {shown && <RunLeft run={shown} notebook={schedule.notebook} />}
    </div>
  );
}

/** What a run left: its error in full, what was noted of it, its notebook and its files. */
export function RunLeft({ run, notebook }: { run: RunRow; notebook: string }): JSX.Element {
  const tools = useTools();
  const { trans, api, forms } = tools;
  const files = run.files ?? [];
  const over = !ACTIVE.includes(run.state);
  return (
    <section className="cb-run-left" aria-label={trans.__('What the run of %1 left', runTime(run))}>
      {over && took(run) && (
        <div className="cb-dim">{trans.__('It took %1 and cost %2.', took(run), usdText(parseUsd(run.cost_usd)))}</div>
      )}
      {run.error && !!run.cell && <div>{trans.__('It ended in cell %1 of %2.', run.cell, run.cells_count ?? run.cell)}</div>}
      {run.error && <Problem info={run.error} />}
      {(run.notes ?? []).map(note => (
        <div key={note} className="cb-dim cb-wraps">{note}</div>
      ))}
      {run.environment === 'frozen' && <div className="cb-dim">{trans.__('It ran in its environment as it was when it was scheduled, built again.')}</div>}
      {run.environment === 'image' && <div className="cb-dim">{trans.__('It ran in the image of its schedule.')}</div>}
      {run.has_notebook && (
        <button className="cb-link" onClick={() => forms.openRun(run, notebook)}>{trans.__('Open its notebook, with all outputs')}</button>
      )}
      {run.session && (
        <div>
          <button className="cb-link" onClick={() => void showLogs(tools, run.session!, trans.__('The run of %1', runTime(run)))}>
            {trans.__('Show what it printed')}
          </button>
        </div>
      )}
      {files.length > 0 && (
        <ul className="cb-rows" aria-label={trans.__('Files that the run of %1 wrote', runTime(run))}>
          {files.map(file => (
            <li key={file.path} className="cb-line">
              <a className="cb-text cb-link" href={api.runFileUrl(run.id, file.path)} download={fileName(file.path)} title={trans.__('Download %1', file.path)}>
                {file.path}
              </a>
              <span className="cb-dim cb-size">{sizeText(file.size_bytes ?? 0)}</span>
            </li>
          ))}
        </ul>
      )}
      {!files.length && (
        <div className="cb-dim">{over ? trans.__('It left no files beside its notebook.') : trans.__('Files that it writes are listed when it has ended.')}</div>
      )}
    </section>
  );
}

function runTime(run: RunRow): string {
  return new Date(run.instant_unix_seconds * 1000).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'short' });
}

const ACTIVE: RunRow['state'][] = ['queued', 'starting', 'running'];

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
