/** The parts that the form of a schedule is made of. */

import * as React from 'react';
import { ErrorInfo, Looked, ParameterShown, SchedulePreview, ScheduleText, SecretRow, VolumeRow } from './protocol';
import { forecastText, IMount, Kind, listed, mayBeEmpty, mounts, mountsText, PRESETS, toggled, valueOf } from './schedule_text';
import { useTools } from './tools';

export interface IFields {
  text: ScheduleText;
  change(part: Partial<ScheduleText>): void;
}

/** A label, its field, and what is to be said of it. */
export function Field(props: { label: string; hint?: string; problem?: string; wide?: boolean; children: React.ReactElement }): JSX.Element {
  const id = React.useId();
  const said = props.problem || props.hint;
  return (
    <div className={props.wide ? 'cb-field cb-field-wide' : 'cb-field'}>
      <label htmlFor={id}>{props.label}</label>
      {React.cloneElement(props.children, { id, 'aria-describedby': said ? `${id}-said` : undefined, 'aria-invalid': !!props.problem || undefined })}
      {said && (
        <div id={`${id}-said`} className={props.problem ? 'cb-field-problem' : 'cb-dim'} role={props.problem ? 'alert' : undefined}>
          {said}
        </div>
      )}
    </div>
  );
}

/** A line of text of a schedule. */
export function Line(props: IFields & { of: keyof ScheduleText; label: string; hint?: string; list?: string; placeholder?: string; wide?: boolean }): JSX.Element {
  return (
    <Field label={props.label} hint={props.hint} wide={props.wide}>
      <input
        className="jp-mod-styled" type="text" spellCheck={false} autoComplete="off" list={props.list} placeholder={props.placeholder}
        value={String(props.text[props.of] ?? '')} onChange={event => props.change({ [props.of]: event.target.value })}
      />
    </Field>
  );
}

/** A whole number, or with `step` a broken one. */
export function Count(props: IFields & { of: 'retries' | 'keep_runs' | 'keep_days'; label: string; hint?: string; usual: number }): JSX.Element {
  return (
    <Field label={props.label} hint={props.hint}>
      <input
        className="jp-mod-styled" type="number" min={0} step={1} value={props.text[props.of] ?? props.usual}
        onChange={event => props.change({ [props.of]: Math.max(0, Math.round(Number(event.target.value) || 0)) })}
      />
    </Field>
  );
}

export function Choice(props: IFields & { of: 'overlap' | 'missed' | 'network' | 'modal_cells' | 'environment'; label: string; options: [string, string][]; hint?: string }): JSX.Element {
  return (
    <Field label={props.label} hint={props.hint}>
      <select className="jp-mod-styled" value={String(props.text[props.of] ?? props.options[0][0])} onChange={event => props.change({ [props.of]: event.target.value })}>
        {props.options.map(([value, words]) => (
          <option key={value} value={value}>{words}</option>
        ))}
      </select>
    </Field>
  );
}

/** When: one of three kinds, with its reading, the next times, the machine and what it will cost. */
export function When(props: IFields & { kind: Kind; setKind(kind: Kind): void; preview: SchedulePreview | null; zones: string[] }): JSX.Element {
  const { trans } = useTools();
  const { kind, text, change } = props;
  const kinds: [Kind, string][] = [['cron', trans.__('At fixed times')], ['every', trans.__('Every so often')], ['at', trans.__('Once')]];
  const id = React.useId();
  return (
    <fieldset>
      <legend>{trans.__('When')}</legend>
      <div className="cb-radios" role="radiogroup" aria-label={trans.__('How often')}>
        {kinds.map(([value, words]) => (
          <label key={value}>
            <input type="radio" name={`${id}-kind`} checked={kind === value} onChange={() => props.setKind(value)} /> {words}
          </label>
        ))}
      </div>
      <div className="cb-fields">
        {kind === 'cron' && (
          <>
            <Field label={trans.__('Usual times')}>
              <select className="jp-mod-styled" value={PRESETS.some(([cron]) => cron === text.cron) ? text.cron : ''} onChange={event => event.target.value && change({ cron: event.target.value })}>
                <option value="">{trans.__('as written beside')}</option>
                {PRESETS.map(([cron, words]) => (
                  <option key={cron} value={cron}>{trans.__(words)}</option>
                ))}
              </select>
            </Field>
            <Line {...props} of="cron" label={trans.__('Cron line')} hint={trans.__('minute, hour, day of month, month, day of week')} placeholder="0 7 * * 1-5" />
          </>
        )}
        {kind === 'every' && <Line {...props} of="every" label={trans.__('Every')} hint={trans.__('such as 15m, 6h, 1d; counted from when it is saved')} placeholder="6h" />}
        {kind === 'at' && (
          <Field label={trans.__('At')}>
            <input className="jp-mod-styled" type="datetime-local" value={text.at ?? ''} onChange={event => change({ at: event.target.value })} />
          </Field>
        )}
        <Line {...props} of="timezone" label={trans.__('Time zone')} list={`${id}-zones`} placeholder="UTC" />
        <datalist id={`${id}-zones`}>
          {props.zones.map(zone => (
            <option key={zone} value={zone} />
          ))}
        </datalist>
      </div>
      <Reading preview={props.preview} />
    </fieldset>
  );
}

function Reading({ preview }: { preview: SchedulePreview | null }): JSX.Element {
  const { trans } = useTools();
  if (preview?.problem) {
    return (
      <div className="cb-reading" role="alert">
        <Problem info={preview.problem} />
      </div>
    );
  }
  const cost = forecastText(preview?.forecast);
  return (
    <div className="cb-reading" role="status">
      {!preview && trans.__('Reading the times…')}
      {preview && (
        <>
          <b>{trans.__('Runs %1', preview.words)}</b>
          <ol className="cb-times" aria-label={trans.__('The next times')}>
            {(preview.next_local ?? []).map(local => (
              <li key={local}>{local}</li>
            ))}
          </ol>
          <div>{trans.__('%1 must be on then, with its gateway up: `cellburst service install` keeps it so.', preview.machine)}</div>
          <div>
            {cost
              ? trans._n('About %2 a run, %3 a month, from the last run', 'About %2 a run, %3 a month, from the last %1 runs', cost.runs, cost.run, cost.month)
              : trans.__('No run has succeeded yet: what one costs is known then.')}
          </div>
        </>
      )}
    </div>
  );
}

/** An error's words: what is wrong, what is allowed, what to do. */
export function Problem({ info }: { info: ErrorInfo }): JSX.Element {
  const { trans } = useTools();
  return (
    <div className="cb-note cb-note-error">
      {info.message}
      {info.allowed && <div>{trans.__('Allowed: %1', info.allowed)}</div>}
      {info.next && <div>{info.next}</div>}
    </div>
  );
}

/** What is typed for each parameter; `undefined` keeps the notebook's own value. */
export type Raw = Record<string, string | undefined>;

/** The parameters of the notebook, each with its type. What is left empty keeps the notebook's own value, unless it is to be empty. */
export function Parameters(props: { parameters: ParameterShown[] | null | undefined; raw: Raw; set(name: string, text: string | undefined): void }): JSX.Element {
  const { trans } = useTools();
  const { parameters, raw } = props;
  return (
    <fieldset>
      <legend>{trans.__('Parameters')}</legend>
      {!parameters?.length && (
        <p className="cb-dim">{trans.__('None: give the tag `parameters` to the cell that sets them (in the property inspector, right sidebar), and save the notebook.')}</p>
      )}
      <div className="cb-fields">
        {(parameters ?? []).map(parameter => {
          const text = raw[parameter.name];
          const wrong = valueOf(parameter, text).problem;
          return (
            <div key={parameter.name}>
              <Field label={parameter.type ? `${parameter.name} (${parameter.type})` : parameter.name} problem={wrong && trans.__('This is not %1', wrong)}>
                {parameter.type === 'bool' ? (
                  <select className="jp-mod-styled" value={text ?? ''} onChange={event => props.set(parameter.name, event.target.value || undefined)}>
                    <option value="">{trans.__('as in the notebook: %1', parameter.default ?? '')}</option>
                    <option value="true">True</option>
                    <option value="false">False</option>
                  </select>
                ) : (
                  <input
                    className="jp-mod-styled" spellCheck={false} autoComplete="off" placeholder={text === undefined ? parameter.default : ''} value={text ?? ''}
                    inputMode={parameter.type === 'int' || parameter.type === 'float' ? 'decimal' : undefined}
                    onChange={event => props.set(parameter.name, event.target.value || undefined)}
                  />
                )}
              </Field>
              {mayBeEmpty(parameter) && !text && (
                <label className="cb-dim">
                  <input
                    type="checkbox" checked={text === ''} aria-label={trans.__('%1 is the empty text', parameter.name)}
                    onChange={event => props.set(parameter.name, event.target.checked ? '' : undefined)}
                  />{' '}
                  {trans.__('empty text, not as in the notebook')}
                </label>
              )}
            </div>
          );
        })}
      </div>
    </fieldset>
  );
}

/** Which secrets a run has as environment variables, and which volumes where. */
export function Given(props: IFields & { secrets: SecretRow[]; volumes: VolumeRow[] }): JSX.Element {
  const { trans } = useTools();
  const { text, change } = props;
  const used = listed(text.secrets).map(one => one.split(':')[0]);
  const names = [...new Set([...props.secrets.map(row => row.name), ...used])];
  // A row without a name or a path is being written: it is not in the text yet.
  const [rows, setRows] = React.useState<IMount[]>(mounts(text.volumes));
  const there = mountsText(rows);
  React.useEffect(() => {
    if (there !== (text.volumes ?? '')) {
      setRows(mounts(text.volumes));
    }
  }, [text.volumes]);
  const set = (next: IMount[]): void => {
    setRows(next);
    change({ volumes: mountsText(next) });
  };
  return (
    <fieldset>
      <legend>{trans.__('Secrets and volumes')}</legend>
      {names.length === 0 && <p className="cb-dim">{trans.__('There are no secrets; the panel makes them.')}</p>}
      <div className="cb-checks" role="group" aria-label={trans.__('Secrets')}>
        {names.map(name => (
          <label key={name}>
            <input type="checkbox" checked={used.includes(name)} onChange={event => change({ secrets: toggled(text.secrets, name, event.target.checked) })} />{' '}
            {name}
            {!props.secrets.some(row => row.name === name) && <span className="cb-field-problem"> {trans.__('(is not there)')}</span>}
          </label>
        ))}
      </div>
      {rows.map((row, index) => (
        <div className="cb-mount" key={index}>
          <input
            className="jp-mod-styled" aria-label={trans.__('Path of volume %1', index + 1)} placeholder="/data" value={row.path} spellCheck={false}
            onChange={event => set(rows.map((one, at) => (at === index ? { ...one, path: event.target.value } : one)))}
          />
          <select
            className="jp-mod-styled" aria-label={trans.__('Volume %1', index + 1)} value={row.name}
            onChange={event => set(rows.map((one, at) => (at === index ? { ...one, name: event.target.value } : one)))}
          >
            {[...new Set(['', ...props.volumes.map(volume => volume.name), row.name])].map(name => (
              <option key={name} value={name}>{name || trans.__('choose a volume')}</option>
            ))}
          </select>
          <button type="button" className="jp-Button jp-mod-styled jp-mod-reject" onClick={() => set(rows.filter((_, at) => at !== index))}>
            {trans.__('Take away')}
          </button>
        </div>
      ))}
      <button type="button" className="cb-link" onClick={() => setRows([...rows, { path: '', name: '', rest: '' }])}>
        {trans.__('Add a volume')}
      </button>
    </fieldset>
  );
}

/** Whom to tell: JupyterLab, and addresses, one a line. */
export function Told(props: IFields): JSX.Element {
  const { trans } = useTools();
  const all = props.text.notify ?? [];
  const ours = all.find(one => one.split(':')[0] === 'jupyter') ?? '';
  const others = all.filter(one => one !== ours);
  const [lines, setLines] = React.useState(others.join('\n'));
  const put = (mine: string, text: string): void => {
    const rest = text.split('\n').map(one => one.trim()).filter(one => one !== '');
    props.change({ notify: [...(mine ? [mine] : []), ...rest] });
  };
  return (
    <>
      <Field label={trans.__('JupyterLab tells')}>
        <select className="jp-mod-styled" value={ours} onChange={event => put(event.target.value, lines)}>
          <option value="jupyter">{trans.__('when a run has ended')}</option>
          <option value="jupyter:failure">{trans.__('when a run has failed')}</option>
          {ours === 'jupyter:success' && <option value="jupyter:success">{trans.__('when a run has succeeded')}</option>}
          <option value="">{trans.__('nothing')}</option>
        </select>
      </Field>
      <Field label={trans.__('Tell also')} hint={trans.__('e-mail addresses and webhooks, one a line; `:failure` behind one: only of failures')}>
        <textarea
          className="jp-mod-styled" rows={2} spellCheck={false} value={lines}
          onChange={event => {
            setLines(event.target.value);
            put(ours, event.target.value);
          }}
        />
      </Field>
    </>
  );
}

/** What a run would stumble over, and what was decided for the person. */
export function Findings({ looked }: { looked: Looked }): JSX.Element | null {
  const { trans } = useTools();
  const findings = looked.findings ?? [];
  const problems = findings.filter(finding => finding.kind === 'problem');
  if (looked.problem) {
    return (
      <div role="alert">
        <Problem info={looked.problem} />
      </div>
    );
  }
  return (
    <div role="status">
      {problems.length > 0 && <b>{trans._n('A run would stumble over this:', 'A run would stumble over these %1 things:', problems.length)}</b>}
      {problems.length === 0 && <span className="cb-dim">{trans.__('Nothing was found in the notebook that a run would stumble over.')}</span>}
      <ul className="cb-findings">
        {[...problems, ...findings.filter(finding => finding.kind !== 'problem')].map((finding, index) => (
          <li key={index} className={finding.kind === 'problem' ? 'cb-warning' : 'cb-dim'}>
            {finding.cell ? trans.__('cell %1: ', finding.cell) : ''}
            {finding.text}
          </li>
        ))}
        {(looked.notes ?? []).map(note => (
          <li key={note} className="cb-dim">{note}</li>
        ))}
      </ul>
    </div>
  );
}
