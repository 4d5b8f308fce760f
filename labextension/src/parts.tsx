/** Small parts that all sections are made of. */

import { caretDownIcon, caretRightIcon, LabIcon } from '@jupyterlab/ui-components';
import * as React from 'react';
import { ApiError, errorText } from './api';
import { Connection } from './live';
import { IList, useTools } from './tools';
import { visibleRows } from './windowed';

interface ISection {
  id: string;
  title: string;
  /** What a folded section says beside its title. */
  note?: string;
  open: boolean;
  actions?: React.ReactNode;
  children: React.ReactNode;
}

/** A section that folds, and stays as it was left. */
export function Section(props: ISection): JSX.Element {
  const { folds } = useTools();
  const open = props.open;
  const Icon = open ? caretDownIcon : caretRightIcon;
  return (
    <section className="cb-section" aria-label={props.title} data-section={props.id}>
      <div className="cb-section-head">
        <h3>
          <button
            className="cb-section-button" aria-expanded={open} aria-controls={`cb-section-${props.id}`}
            onClick={() => folds.set(props.id, !open)}
          >
            <Icon.react tag="span" className="cb-caret" aria-hidden="true" />
            <span className="cb-section-title">{props.title}</span>
            {props.note && <span className="cb-section-note">{props.note}</span>}
          </button>
        </h3>
        {open && props.actions}
      </div>
      {open && (
        <div className="cb-section-body" id={`cb-section-${props.id}`}>
          {props.children}
        </div>
      )}
    </section>
  );
}

interface IAction {
  icon: LabIcon;
  label: string;
  onClick(event: React.MouseEvent): void;
  disabled?: boolean;
  pressed?: boolean;
}

/** A button that is an icon. */
export function Action(props: IAction): JSX.Element {
  return (
    <button
      className="cb-action" title={props.label} aria-label={props.label} aria-disabled={props.disabled || undefined}
      aria-pressed={props.pressed} onClick={event => !props.disabled && props.onClick(event)}
    >
      <props.icon.react tag="span" aria-hidden="true" />
    </button>
  );
}

/** A share as a bar with its words. `ratio` null: not known. */
export function Meter(props: { label: string; ratio: number | null; text: string }): JSX.Element {
  const percent = Math.round(Math.min(1, Math.max(0, props.ratio ?? 0)) * 100);
  return (
    <div
      className="cb-meter" role="meter" aria-label={props.label} aria-valuemin={0} aria-valuemax={100} aria-valuenow={percent}
      aria-valuetext={props.text}
    >
      <span className="cb-meter-name">{props.label}</span>
      <span className="cb-meter-bar">
        <span style={{ width: `${percent}%` }} />
      </span>
      <span className="cb-meter-text">{props.text}</span>
    </div>
  );
}

/** Words where there is nothing else to show. */
export function Note(props: { children: React.ReactNode; kind?: 'empty' | 'error' }): JSX.Element {
  return (
    <div className={`cb-note ${props.kind === 'error' ? 'cb-note-error' : ''}`} role={props.kind === 'error' ? 'alert' : undefined}>
      {props.children}
    </div>
  );
}

/** An error with what to do next. */
export function Problem(props: { error: unknown; onAgain?: () => void }): JSX.Element {
  const { trans } = useTools();
  const info = props.error instanceof ApiError ? props.error.info : null;
  return (
    <Note kind="error">
      <div>{info ? info.message : errorText(props.error)}</div>
      {info?.allowed && <div className="cb-dim">{trans.__('Allowed: %1', info.allowed)}</div>}
      {info?.next && <div className="cb-dim">{info.next}</div>}
      {props.onAgain && (
        <button className="cb-link" onClick={props.onAgain}>
          {trans.__('Try again')}
        </button>
      )}
    </Note>
  );
}

/** What stands where nothing can be shown yet: that it comes, or what has to happen before. */
export function Absent(): JSX.Element {
  const { trans, live } = useTools();
  const words: Record<Connection, string> = {
    waiting: trans.__('Loading…'), live: trans.__('Loading…'),
    offline: live.starting ? trans.__('Shown when the gateway has started.') : trans.__('Shown when the gateway runs: press Start above.'),
    disconnected: trans.__('Shown when the Jupyter server answers again.'),
    'logged-out': trans.__('Shown when you are logged in again: the link is above.')
  };
  return <Note>{words[live.connection]}</Note>;
}

/** A list's states: loading, offline, an error, nothing there, or its rows. An error keeps what was shown before; without a connection
 *  an error of before says nothing, the banner above does. */
export function ListBody<T, R>(props: {
  list: IList<T>;
  rows(value: T): R[];
  empty: React.ReactNode;
  children(rows: R[], value: T): React.ReactNode;
}): JSX.Element {
  const { live } = useTools();
  const { value, error, refresh } = props.list;
  const problem = error && live.connection === 'live' ? <Problem error={error} onAgain={refresh} /> : null;
  if (value === null) {
    return problem ?? <Absent />;
  }
  const rows = props.rows(value);
  return (
    <>
      {problem}
      {rows.length ? props.children(rows, value) : <Note>{props.empty}</Note>}
    </>
  );
}

const ALL_ROWS = 60; // more are made only where they are in sight
const LIST_HEIGHT = 420;

/** Rows, of which only those in sight are made when there are many; they then have `rowHeight` each. */
export function RowList<R>(props: { label: string; rows: R[]; rowHeight: number; rowKey(row: R): string; children(row: R): React.ReactNode }): JSX.Element {
  const [top, setTop] = React.useState(0);
  const { rows, rowHeight } = props;
  const many = rows.length > ALL_ROWS;
  const view = many ? visibleRows(rows.length, rowHeight, top, LIST_HEIGHT) : { first: 0, end: rows.length, before: 0, after: 0 };
  return (
    <div
      className={many ? 'cb-scroll' : undefined} style={many ? { height: LIST_HEIGHT } : undefined} tabIndex={many ? 0 : undefined}
      role={many ? 'group' : undefined} aria-label={many ? props.label : undefined}
      onScroll={many ? event => setTop(event.currentTarget.scrollTop) : undefined}
    >
      <ul className="cb-rows" aria-label={props.label} style={{ paddingTop: view.before, paddingBottom: view.after }}>
        {rows.slice(view.first, view.end).map((row, index) => (
          <li
            key={props.rowKey(row)} className="cb-row" style={many ? { height: rowHeight } : undefined}
            aria-setsize={rows.length} aria-posinset={view.first + index + 1}
          >
            {props.children(row)}
          </li>
        ))}
      </ul>
    </div>
  );
}

/** What uses a thing, in one line; nothing where nothing does. */
export function UsedBy({ users }: { users?: string[] }): JSX.Element | null {
  const { trans } = useTools();
  if (!users?.length) {
    return null;
  }
  const words = users.join(', ');
  return (
    <div className="cb-dim cb-text cb-used-by" title={users.join('\n')}>
      {trans.__('used by %1', words)}
    </div>
  );
}

/** A mark beside what is simulated. */
export function Simulated(): JSX.Element {
  return <span className="cb-tag cb-simulated">SIMULATED</span>;
}
