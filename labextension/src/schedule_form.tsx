/** The form of a schedule, in a tab of its own: it reads what is typed back in words, says what a run would stumble over before it is
 *  saved, and keeps what was typed when somebody else was faster. */

import { MainAreaWidget, ReactWidget } from '@jupyterlab/apputils';
import * as React from 'react';
import { ApiError, errorText } from './api';
import { scheduleIcon } from './icons';
import { kinds } from './magic_cell';
import { Looked, SchedulePreview, ScheduleRow, ScheduleShown, ScheduleText, SecretRow, VolumeRow } from './protocol';
import { Choice, Count, Field, Findings, Given, Line, Parameters, Raw, Told, When } from './schedule_fields';
import { conflictOf, differences, freeName, Kind, kindOf, typed, valueOf, withKind } from './schedule_text';
import { toast } from './toasts';
import { ITools, Tools, useLive, useTools } from './tools';
import { fileName, sizeText } from './words';

const PREVIEW_MS = 250;
const LOOK_MS = 600;

/** A notebook of this Jupyter server that is to be scheduled, or a schedule that is to be changed. */
export type Target = { path: string } | { schedule: string; name: string };

/** A tab with the form. `done` is told when something was saved. */
export function scheduleTab(tools: ITools, target: Target, done: () => void): MainAreaWidget<ReactWidget> {
  const content = ReactWidget.create(
    <Tools.Provider value={tools}>
      <Loaded target={target} done={words => {
        toast(tools.trans.__('The schedule'), words, 'success', { autoClose: 8000 });
        done();
        tab.dispose();
      }} />
    </Tools.Provider>
  );
  content.addClass('cb-schedule');
  const tab = new MainAreaWidget({ content });
  const name = 'path' in target ? fileName(target.path) : target.name;
  tab.title.label = tools.trans.__('Schedule: %1', name);
  tab.title.caption = 'path' in target ? target.path : target.name;
  tab.title.icon = scheduleIcon;
  tab.title.closable = true;
  return tab;
}

interface IStart {
  looked: Looked;
  shown: ScheduleShown | null;
  secrets: SecretRow[];
  volumes: VolumeRow[];
}

/** Asks for what the form begins with; an error says what to do, and a button asks again. */
function Loaded(props: { target: Target; done(words: string): void }): JSX.Element {
  const { trans, api } = useTools();
  const [start, setStart] = React.useState<IStart | null>(null);
  const [failed, setFailed] = React.useState<unknown>(null);
  const load = async (): Promise<void> => {
    setFailed(null);
    try {
      await api.start();  // nothing when it runs
      const { target } = props;
      const shown = 'schedule' in target ? await api.schedule(target.schedule) : null;
      const looked = await api.lookSchedule('path' in target ? { path: target.path } : { schedule: target.schedule, take: false });
      // Without these the form works too: names can be chosen from what there is, or are not.
      const [secrets, volumes] = await Promise.all([api.secrets().catch(() => ({ rows: [] })), api.volumes().catch(() => ({ rows: [] }))]);
      setStart({ looked, shown, secrets: secrets.rows ?? [], volumes: (volumes.rows ?? []).filter(row => !row.ephemeral) });
    } catch (error) {
      setFailed(error);
    }
  };
  React.useEffect(() => void load(), []);
  if (failed) {
    return (
      <div className="cb-form" role="alert">
        <p className="cb-note cb-note-error">{errorText(failed)}</p>
        <button className="jp-Button jp-mod-styled jp-mod-accept" onClick={() => void load()}>{trans.__('Try again')}</button>
      </div>
    );
  }
  return start ? <Form {...start} {...props} /> : <div className="cb-form" role="status">{trans.__('Reading the notebook, its folder and its environment…')}</div>;
}

function Form(props: IStart & { target: Target; done(words: string): void }): JSX.Element {
  const { trans, api } = useTools();
  const live = useLive();
  const { target } = props;
  const schedule = 'schedule' in target ? target.schedule : '';
  const [text, setText] = React.useState<ScheduleText>(props.looked.text);
  const [kind, setKind] = React.useState<Kind>(kindOf(props.looked.text));
  const [raw, setRaw] = React.useState<Raw>(() => rawOf(props.looked, props.looked.text));
  const [take, setTake] = React.useState(!schedule);
  const [base, setBase] = React.useState(props.shown);
  const [theirs, setTheirs] = React.useState<ScheduleShown | null>(null);
  const [taken, setTaken] = React.useState<ITaken | null>(null);
  const [looked, setLooked] = React.useState(props.looked);
  const [preview, setPreview] = React.useState<SchedulePreview | null>(null);
  const [failed, setFailed] = React.useState<unknown>(null);
  const [saving, setSaving] = React.useState(false);
  const top = React.useRef<HTMLDivElement>(null);
  const change = (part: Partial<ScheduleText>): void => setText(old => ({ ...old, ...part }));

  const shownParameters = looked.parameters ?? [];
  const wrong = shownParameters.filter(parameter => valueOf(parameter, raw[parameter.name]).problem);
  const parameters = Object.fromEntries(
    shownParameters.map(p => [p.name, valueOf(p, raw[p.name]).value]).filter(([, value]) => value !== undefined)
  );
  const sent = withKind({ ...text, parameters }, kind);

  useDelayed(PREVIEW_MS, [sent.cron, sent.every, sent.at, sent.timezone], fresh => {
    setPreview(null);
    const times = { cron: sent.cron, every: sent.every, at: sent.at, timezone: sent.timezone };
    void api.previewSchedule({ text: times, schedule }).then(got => fresh() && setPreview(got), error => fresh() && setFailed(error));
  });
  // The times decide nothing of what a run stumbles over; they are told apart, and may be half typed.
  const { cron: _cron, every: _every, at: _at, timezone: _timezone, ...rest } = sent;
  const asks = JSON.stringify([rest, take]);
  const answered = React.useRef(asks);
  useDelayed(LOOK_MS, [asks], fresh => {
    if (answered.current === asks) {
      return;
    }
    const asked = { ...rest, every: '1h' };
    void api
      .lookSchedule('path' in target ? { path: target.path, text: asked } : { schedule, take, text: asked })
      .then(
        got => {
          if (fresh()) {
            answered.current = asks;
            setLooked(got);
          }
        },
        error => fresh() && setFailed(error)
      );
  });

  const save = async (revision: number, name?: string): Promise<void> => {
    setSaving(true);
    setFailed(null);
    setTaken(null);
    try {
      const form = { text: name ? { ...sent, name } : sent, revision, take };
      const saved = 'path' in target ? await api.createSchedule({ ...form, path: target.path }) : await api.changeSchedule(schedule, form);
      const lacks = saved.missing?.length ? ` ${trans.__('Not there: %1', saved.missing.join('; '))}` : '';
      props.done(trans.__('%1 is scheduled: %2', saved.row.name, saved.row.words) + lacks);
    } catch (error) {
      try {
        const conflict = error instanceof ApiError && error.status === 409 ? conflictOf(error.info) : null;
        if (conflict?.taken) {
          const { rows = [] } = await api.schedules().catch(() => ({ rows: [] as ScheduleRow[] }));
          setTaken({ name: name ?? sent.name ?? '', by: rows.find(row => row.id === conflict.taken) ?? null, free: freeName(name ?? sent.name ?? '', rows.map(row => row.name)) });
        } else if (schedule && conflict?.changed) {
          setTheirs(await api.schedule(schedule));
        } else {
          throw error;
        }
        top.current?.scrollIntoView({ block: 'start' });
      } catch (gone) {
        setFailed(gone);
      }
      setSaving(false);
    }
  };
  const takeTheirs = (): void => {
    setText(theirs!.text);
    setKind(kindOf(theirs!.text));
    setRaw(rawOf(looked, theirs!.text));
    setBase(theirs);
    setTheirs(null);
  };
  const problems = (looked.findings ?? []).filter(finding => finding.kind === 'problem').length;
  const blocked = !!preview?.problem || !!looked.problem || wrong.length > 0;
  const types = kinds(live.status);
  const fields = { text, change };
  return (
    <div className="cb-form" ref={top}>
      <h2>{schedule ? trans.__('Change the schedule %1', base?.row.name ?? '') : trans.__('Schedule %1', fileName(looked.notebook ?? ''))}</h2>
      <p className="cb-dim">
        {trans.__('The notebook, the files beside it and its packages are kept as they are when this is saved. No Jupyter need be open when it runs.')}
      </p>
      {theirs && <Conflict mine={sent} theirs={theirs} onOver={() => (setTheirs(null), setBase(theirs), void save(theirs.row.revision))} onTake={takeTheirs} />}
      {taken && (
        <Taken
          taken={taken}
          onFree={() => {
            change({ name: taken.free });
            void save(base?.row.revision ?? 0, taken.free);
          }}
        />
      )}
      <form
        onSubmit={event => {
          event.preventDefault();
          if (!blocked && !saving) {
            void save(base?.row.revision ?? 0);
          }
        }}
      >
        <div className="cb-fields">
          <Line {...fields} of="name" label={trans.__('Name')} wide />
          {schedule && <Take base={base} take={take} setTake={setTake} />}
        </div>
        <When {...fields} kind={kind} setKind={setKind} preview={preview} zones={zones(text.timezone)} />
        <Parameters parameters={looked.parameters} raw={raw} set={(name, value) => setRaw(old => ({ ...old, [name]: value }))} />
        <fieldset>
          <legend>{trans.__('Hardware and environment')}</legend>
          <div className="cb-fields">
            <Line {...fields} of="gpu" label={trans.__('GPU')} list="cb-gpu-types" placeholder={trans.__('none')} hint={trans.__('a type, A100:2 for two, H100,A100 for the first that is free, any; empty for none')} />
            <datalist id="cb-gpu-types">
              {types.map(type => (
                <option key={type.type} value={type.type} />
              ))}
              <option value="any" />
            </datalist>
            <Line {...fields} of="memory" label={trans.__('Memory')} placeholder="4GiB" />
            <Line {...fields} of="cpu" label={trans.__('CPU cores')} placeholder="1" />
            <Choice {...fields} of="network" label={trans.__('Network')} options={[['outbound', trans.__('outbound')], ['none', trans.__('none')]]} />
            <Choice
              {...fields} of="modal_cells" label={trans.__('%1 cells', '%%modal')}
              options={[['own', trans.__('on machines of their own, as their lines ask')], ['same', trans.__('in the same session as all others')]]}
            />
            <Field label={trans.__('Files beside the notebook')} hint={looked.files_count ? trans._n('%1 file, %2', '%1 files, %2', looked.files_count, sizeText(looked.files_bytes ?? 0)) : undefined}>
              <select className="jp-mod-styled" value={text.folder === false ? 'no' : 'yes'} onChange={event => change({ folder: event.target.value === 'yes' })}>
                <option value="yes">{trans.__('go along')}</option>
                <option value="no">{trans.__('stay here')}</option>
              </select>
            </Field>
            <Line
              {...fields} of="image" label={trans.__('Image')} placeholder={trans.__('none')}
              hint={trans.__('FILE.py:NAME, a cellburst.Image in a file beside the notebook')}
            />
            {!text.image && (
              <Choice
                {...fields} of="environment" label={trans.__('Environment')}
                options={[['frozen', trans.__('as it is when this is saved')], ['live', trans.__('as it is when it runs')]]}
                hint={looked.python_version ? trans.__('of the notebook\'s kernel, Python %1', looked.python_version) : undefined}
              />
            )}
          </div>
        </fieldset>
        <Given {...fields} secrets={props.secrets} volumes={props.volumes} />
        <fieldset>
          <legend>{trans.__('Limits, and when something goes wrong')}</legend>
          <div className="cb-fields">
            <Line {...fields} of="timeout" label={trans.__('Timeout of a run')} placeholder={trans.__('none')} hint={trans.__('such as 30m, 2h')} />
            <Line {...fields} of="budget" label={trans.__('Budget of a run, US dollars')} placeholder={trans.__('none')} />
            <Count {...fields} of="retries" label={trans.__('Retries')} usual={0} hint={trans.__('further attempts after one that failed')} />
            <Choice
              {...fields} of="overlap" label={trans.__('While the last run goes on')}
              options={[['skip', trans.__('skip the new one')], ['queue', trans.__('let the new one wait')], ['replace', trans.__('end the last one')]]}
            />
            <Choice
              {...fields} of="missed" label={trans.__('Times that were missed')}
              options={[['latest', trans.__('run the latest')], ['skip', trans.__('run none')], ['all', trans.__('run all')]]}
              hint={trans.__('when the machine was off or asleep')}
            />
            <Line {...fields} of="missed_window" label={trans.__('No later than')} placeholder="10m" />
          </div>
        </fieldset>
        <fieldset>
          <legend>{trans.__('What is kept, and who is told')}</legend>
          <div className="cb-fields">
            <Count {...fields} of="keep_runs" label={trans.__('Runs that are kept')} usual={50} hint={trans.__('0: no bound')} />
            <Count {...fields} of="keep_days" label={trans.__('Days that they are kept')} usual={30} hint={trans.__('0: no bound')} />
            <Told {...fields} key={base?.row.revision} />
          </div>
        </fieldset>
        <Findings looked={looked} />
        {failed !== null && (
          <p className="cb-note cb-note-error" role="alert">{errorText(failed)}</p>
        )}
        {blocked && <p className="cb-field-problem" role="status">{trans.__('It can be saved when what is marked above is mended.')}</p>}
        <button type="submit" className="jp-Button jp-mod-styled jp-mod-accept" aria-disabled={blocked || saving || undefined}>
          {saving ? trans.__('Saving…') : problems ? trans.__('Save all the same') : schedule ? trans.__('Save the change') : trans.__('Schedule')}
        </button>
      </form>
      {base && <span className="cb-spoken">{trans.__('Revision %1', base.row.revision)}</span>}
    </div>
  );
}

/** Which notebook a changed schedule runs: the one that it keeps, or the one that there is now. */
function Take(props: { base: ScheduleShown | null; take: boolean; setTake(take: boolean): void }): JSX.Element {
  const { trans } = useTools();
  const packages = props.base?.environment_changes ?? [];
  const hints = [
    props.base?.gone
      ? trans.__('The notebook is not where it was: %1', props.base.row.notebook)
      : props.base?.changed ? trans.__('The notebook has changed since it was scheduled.') : '',
    packages.length ? trans.__('Installed differently now: %1', packages.slice(0, 5).join(', ') + (packages.length > 5 ? ' …' : '')) : ''
  ];
  const hint = hints.filter(Boolean).join(' ') || undefined;
  return (
    <Field label={trans.__('Notebook')} hint={hint} wide>
      <select className="jp-mod-styled" value={props.take ? 'now' : 'kept'} onChange={event => props.setTake(event.target.value === 'now')}>
        <option value="kept">{trans.__('as it was scheduled')}</option>
        {!props.base?.gone && <option value="now">{trans.__('as it is saved now, with its files and packages')}</option>}
      </select>
    </Field>
  );
}

interface ITaken {
  name: string;
  by: ScheduleRow | null;
  free: string;
}

/** The name is another schedule's: whose, and one that is free. */
function Taken(props: { taken: ITaken; onFree(): void }): JSX.Element {
  const { trans, forms } = useTools();
  const { name, by, free } = props.taken;
  return (
    <div className="cb-note cb-note-error cb-conflict" role="alert">
      <b>{trans.__('Nothing was saved: there is another schedule with the name %1.', name)}</b>
      {by && <div>{trans.__('It runs %1 %2.', by.notebook, by.words ?? '')}</div>}
      <div>{trans.__('What you typed is still below. Give it another name, or change that schedule.')}</div>
      <button type="button" className="jp-Button jp-mod-styled jp-mod-accept" onClick={props.onFree}>{trans.__('Save as %1', free)}</button>{' '}
      {by && (
        <button type="button" className="jp-Button jp-mod-styled jp-mod-reject" onClick={() => forms.edit(by.id, by.name)}>
          {trans.__('Open the other schedule')}
        </button>
      )}
    </div>
  );
}

/** Somebody else was faster: what they changed, and what may be done. */
function Conflict(props: { mine: ScheduleText; theirs: ScheduleShown; onOver(): void; onTake(): void }): JSX.Element {
  const { trans } = useTools();
  const { mine, theirs } = props;
  const shown = (value: unknown): string => (value === undefined || value === '' ? '–' : typeof value === 'string' ? value : JSON.stringify(value));
  return (
    <div className="cb-note cb-note-error cb-conflict" role="alert">
      <b>{trans.__('This schedule was changed meanwhile, in another window or by the command line.')}</b>
      <div>{trans.__('What you typed is still below. Where theirs is different:')}</div>
      <ul>
        {differences(mine, theirs.text).map(key => (
          <li key={key}>
            {key}: {trans.__('theirs %1, yours %2', shown(theirs.text[key]), shown(mine[key]))}
          </li>
        ))}
      </ul>
      <button type="button" className="jp-Button jp-mod-styled jp-mod-warn" onClick={props.onOver}>{trans.__('Save mine over it')}</button>{' '}
      <button type="button" className="jp-Button jp-mod-styled jp-mod-reject" onClick={props.onTake}>{trans.__('Take theirs')}</button>
    </div>
  );
}

function rawOf(looked: Looked, text: ScheduleText): Raw {
  return Object.fromEntries((looked.parameters ?? []).map(parameter => [parameter.name, typed(parameter, text.parameters?.[parameter.name])]));
}

/** All time zones that this browser knows, the one in use first. */
function zones(used: string | undefined): string[] {
  const known: string[] = (Intl as any).supportedValuesOf?.('timeZone') ?? [];
  return [...new Set([used || 'UTC', 'UTC', ...known])];
}

/** Do something some time after the last change. `fresh` says whether nothing has changed since: an old answer is not shown. */
function useDelayed(milliseconds: number, deps: React.DependencyList, act: (fresh: () => boolean) => void): void {
  React.useEffect(() => {
    let stale = false;
    const timer = window.setTimeout(() => act(() => !stale), milliseconds);
    return () => {
      stale = true;
      window.clearTimeout(timer);
    };
  }, deps);
}

