/** What the form of a schedule does with text: times of three kinds, typed parameters, lists. No widgets, no requests. */

import { ErrorInfo, Forecast, ParameterShown, ScheduleText } from './protocol';
import { parseUsd, usdText } from './money';

export type Kind = 'cron' | 'every' | 'at';
export type Value = NonNullable<ScheduleText['parameters']>[string];

/** Lines that people use, with their words. */
export const PRESETS: [cron: string, words: string][] = [
  ['0 7 * * 1-5', 'Weekdays at 7'],
  ['0 7 * * *', 'Every day at 7'],
  ['0 * * * *', 'Every hour'],
  ['*/15 * * * *', 'Every 15 minutes'],
  ['0 7 * * 1', 'Mondays at 7'],
  ['0 7 1 * *', 'The first of each month at 7']
];

/** Which of the three the text has; a new one is a cron line. */
export function kindOf(text: ScheduleText): Kind {
  return text.every ? 'every' : text.at ? 'at' : 'cron';
}

/** The text with one kind of time only. What was typed for the others is left out, not forgotten: the form keeps it. */
export function withKind(text: ScheduleText, kind: Kind): ScheduleText {
  return { ...text, cron: '', every: '', at: '', [kind]: text[kind] ?? '' };
}

/** A parameter as it is typed: strings as they are, all else as JSON; `undefined` is its default, "" the empty text. */
export function typed(parameter: ParameterShown, value: Value | undefined): string | undefined {
  if (value === undefined) {
    return undefined;
  }
  return typeof value === 'string' && (parameter.type === 'str' || !isJson(value)) ? value : JSON.stringify(value);
}

/** Whether the empty text is a value of it, beside its default. */
export function mayBeEmpty(parameter: ParameterShown): boolean {
  return !parameter.type || parameter.type === 'str';
}

/** What was typed as a value. `undefined`, or nothing but blanks where no text is wanted, is the default; `problem` says what is wanted
 *  instead. */
export function valueOf(parameter: ParameterShown, text: string | undefined): { value?: Value; problem?: string } {
  if (text === undefined) {
    return {};
  }
  if (parameter.type === 'str' || (text === '' && mayBeEmpty(parameter))) {
    return { value: text };
  }
  const trimmed = text.trim();
  if (trimmed === '') {
    return {};
  }
  let value: Value;
  try {
    value = JSON.parse(trimmed.replace(/^(True|False|None)$/, word => ({ True: 'true', False: 'false', None: 'null' })[word]!));
  } catch {
    return parameter.type ? { problem: WANTED[parameter.type] ?? parameter.type } : { value: text };
  }
  return fits(parameter.type ?? '', value, trimmed) ? { value } : { problem: WANTED[parameter.type ?? ''] };
}

const WANTED: Record<string, string> = {
  bool: 'True or False', int: 'a whole number', float: 'a number', list: 'a list as JSON: [1, 2]', dict: 'an object as JSON: {"a": 1}'
};

function fits(type: string, value: Value, text: string): boolean {
  switch (type) {
    case 'bool':
      return typeof value === 'boolean';
    case 'int':
      return Number.isSafeInteger(value) && /^-?\d+$/.test(text);
    case 'float':
      return typeof value === 'number' && Number.isFinite(value);
    case 'list':
      return Array.isArray(value);
    case 'dict':
      return typeof value === 'object' && value !== null && !Array.isArray(value);
    default:
      return true;
  }
}

function isJson(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

/** A list that commas separate. */
export function listed(text: string | undefined): string[] {
  return (text ?? '').split(',').map(one => one.trim()).filter(one => one !== '');
}

/** The list with `name` in it or not; others keep their places. A secret may be named with keys (`db:KEY`). */
export function toggled(text: string | undefined, name: string, on: boolean): string {
  const rest = listed(text).filter(one => one.split(':')[0] !== name);
  return (on ? [...listed(text).filter(one => rest.includes(one)), name] : rest).join(',');
}

export interface IMount {
  path: string;
  name: string;
  /** Further options, as they are written: `:ro`. */
  rest: string;
}

/** `volumes=` as rows, and rows as `volumes=`; a row without path or name is not there yet. */
export function mounts(text: string | undefined): IMount[] {
  return listed(text).map(one => {
    const [path, name, ...rest] = one.split(':');
    return { path, name: name ?? '', rest: rest.map(option => `:${option}`).join('') };
  });
}

export function mountsText(rows: IMount[]): string {
  return rows.filter(row => row.path.trim() && row.name).map(row => `${row.path.trim()}:${row.name}${row.rest}`).join(',');
}

/** Names of the fields in which two texts differ. */
export function differences(mine: ScheduleText, theirs: ScheduleText): (keyof ScheduleText)[] {
  const plain = (value: unknown): string => JSON.stringify(sorted(value ?? ''));
  return ([...new Set([...Object.keys(mine), ...Object.keys(theirs)])] as (keyof ScheduleText)[]).filter(
    key => plain(mine[key]) !== plain(theirs[key])
  );
}

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) {
    return value.map(sorted);
  }
  return typeof value === 'object' && value !== null
    ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)).map(([k, v]) => [k, sorted(v)]))
    : value;
}

/** A forecast's amounts as people read them; null while no run has succeeded. */
export function forecastText(forecast: Forecast | undefined): { run: string; month: string; runs: number; times: number } | null {
  if (!forecast?.runs_count) {
    return null;
  }
  return {
    run: usdText(parseUsd(forecast.run_usd)), month: usdText(parseUsd(forecast.month_usd)),
    runs: forecast.runs_count, times: forecast.month_instants_count ?? 0
  };
}

/** Why a schedule was not saved with status 409: its name is that of another schedule (whose id it is), somebody changed it meanwhile,
 *  or something else. */
export function conflictOf(info: ErrorInfo): { taken?: string; changed?: boolean } {
  return info.detail?.schedule ? { taken: info.detail.schedule } : info.detail?.revision ? { changed: true } : {};
}

/** The name with the smallest number behind it that no other schedule has. */
export function freeName(name: string, used: string[]): string {
  const plain = name.replace(/ \d+$/, '');
  for (let number = 2; ; number += 1) {
    const found = `${plain} ${number}`;
    if (!used.includes(found)) {
      return found;
    }
  }
}
