/** What each section of the panel says while it loads, offline, when there is nothing, and when something went wrong: and that it says
 *  what to do. Made to text by React itself; effects, and so requests, are the browser tests'. */

import * as React from 'react';
import { ApiError } from './api';
import { Cost } from './cost';
import { Connection } from './live';
import { Machines } from './machines';
import { Now } from './now';
import { Banner } from './panel';
import { ErrorInfo, RunRow, Status } from './protocol';
import { RunLeft, Schedules } from './schedules';
import { Secrets } from './secrets';
import { Buckets, Shareds } from './shareds';
import { IList, Tools } from './tools';
import { Volumes } from './volumes';

// JupyterLab's own packages need a page; of them only icons and error answers are in what is shown here.
jest.mock('@jupyterlab/ui-components', () => {
  const icon = { react: () => null };
  return new Proxy({ LabIcon: class { react = (): null => null; } } as Record<string, unknown>, { get: (own, name: string) => own[name] ?? icon });
});
jest.mock('@jupyterlab/apputils', () => ({ ReactWidget: class {}, Dialog: {}, Notification: {} }));
jest.mock('@jupyterlab/services', () => ({ ServerConnection: {} }));
jest.mock('@jupyterlab/coreutils', () => ({ URLExt: {} }));
const mockList: { now: IList<unknown> } = { now: { value: null, error: null, loading: true, refresh: () => undefined } };
jest.mock('./tools', () => ({ ...jest.requireActual('./tools'), useList: () => mockList.now }));

const { renderToStaticMarkup } = jest.requireActual('react-dom/server') as { renderToStaticMarkup(node: React.ReactElement): string };
const trans = {
  __: (text: string, ...args: unknown[]) => text.replace(/%(\d)/g, (_, at) => String(args[Number(at) - 1])),
  _n: (one: string, many: string, count: number, ...args: unknown[]) => (count === 1 ? one : many).replace(/%(\d)/g, (_, at) => String([count, ...args][Number(at) - 1]))
};
const signal = { connect: () => true, disconnect: () => true };

function shown(node: React.ReactElement, connection: Connection = 'live', starting = false, more: object = {}): string {
  const api = { loginUrl: '/hub/login', runFileUrl: (run: string, path: string) => `/files/${run}/${path}` };
  const tools = {
    trans, api, live: { connection, starting, status: null, error: null, changed: signal, ...more }, folds: { set: () => undefined }, notebook: { used: {}, path: '' },
    forms: { saved: signal }, uploads: { changed: signal }
  };
  return renderToStaticMarkup(<Tools.Provider value={tools as any}>{node}</Tools.Provider>);
}

const STATUS = { gateway_pid: 1, gateway_url: '', version: '', uptime_seconds: 1, data_folder: '' } as Status;
const LISTS: [string, (props: { status: Status | null; open: boolean }) => JSX.Element, RegExp][] = [
  ['volumes', Volumes, /No volumes yet\. .*<code>volumes=\/data:NAME<\/code>/],
  ['secrets', Secrets, /No secrets yet\. .*<code>secrets=NAME<\/code>/],
  ['schedules', Schedules, /No schedules yet\. Open a notebook and press \+ here/],
  ['cost', Cost, /Nothing was spent in the last seven days\. A cell shows its price/]
];
const PLAIN: [string, (props: { status: Status | null; open: boolean }) => JSX.Element, RegExp][] = [
  ['now', Now, /Nothing runs and nothing costs\. Start a cell with <code>%%modal gpu=any<\/code>/],
  ['machines', Machines, /No machine has joined yet\. The worker of this machine joins a moment after/]
];

function listIs(part: Partial<IList<unknown>>): void {
  mockList.now = { value: null, error: null, loading: false, refresh: () => undefined, ...part };
}

const WITHOUT: [Connection, boolean, RegExp][] = [
  ['waiting', false, /Loading…/], ['offline', false, /the gateway runs: press Start above/], ['offline', true, /when the gateway has started/],
  ['disconnected', false, /when the Jupyter server answers again/], ['logged-out', false, /when you are logged in again: the link is above/]
];

describe.each([...LISTS, ...PLAIN])('%s', (_, Section, empty) => {
  test.each(WITHOUT)('while the connection is %s (starting: %s) it says what it waits for', (connection, starting, words) => {
    // As a list is that was never asked for, and as one is whose question failed when the connection went away.
    for (const part of [{ loading: true }, { error: new Error('Failed to fetch') }]) {
      listIs(part);
      const text = shown(<Section status={null} open />, connection, starting);
      expect(text).toMatch(words);
      expect(text).not.toMatch(/Failed to fetch|Try again/);
    }
  });

  test('nothing there: it says what to do', () => {
    listIs({ value: { rows: [] } });
    const text = shown(<Section status={STATUS} open />);
    expect(text).toMatch(empty);
    expect(text).not.toMatch(/role="alert"|Loading/);
  });

  test('folded it says nothing of all this', () => {
    listIs({ error: new Error('no') });
    expect(shown(<Section status={null} open={false} />, 'offline')).not.toMatch(/press Start|no<|Loading/);
  });
});

describe.each(LISTS)('%s', (_, Section, empty) => {
  test('while it is asked for', () => {
    listIs({ loading: true });
    expect(shown(<Section status={STATUS} open />)).toMatch(/Loading…/);
  });

  test('what went wrong, what is allowed, what to do, and a button that asks again', () => {
    const info = { code: 'platform.store', message: '<b>the record</b> is busy', allowed: 'one at a time', next: 'wait a little' } as ErrorInfo;
    listIs({ error: new ApiError(info, 502) });
    const text = shown(<Section status={STATUS} open />);
    expect(text).toMatch(/role="alert".*&lt;b&gt;the record&lt;\/b&gt; is busy.*Allowed: one at a time.*wait a little.*<button[^>]*>Try again/);
    listIs({ error: new Error('Failed to fetch') });
    expect(shown(<Section status={STATUS} open />)).toMatch(/role="alert".*Failed to fetch.*Try again/);
  });

  test('an error keeps what was shown before', () => {
    listIs({ value: { rows: [] }, error: new Error('Failed to fetch') });
    const text = shown(<Section status={STATUS} open />);
    expect(text).toMatch(/Failed to fetch.*Try again/);
    expect(text).toMatch(empty);
    // Without a connection the banner says why, and what is shown is of before.
    const offline = shown(<Section status={STATUS} open />, 'offline');
    expect(offline).not.toMatch(/Failed to fetch/);
    expect(offline).toMatch(empty);
  });
});

describe('the banner above all sections', () => {
  const down = (message: string): ErrorInfo => ({ code: 'platform.gateway_down', message }) as ErrorInfo;
  test.each<[string, Connection, boolean, object, RegExp]>([
    ['nothing while all is well', 'live', false, {}, /^$/],
    ['it connects', 'waiting', false, {}, /role="status"[^>]*>Connecting…/],
    ['it starts', 'offline', true, {}, /role="status"[^>]*>Starting the gateway…/],
    ['there is none', 'offline', false, { error: down('no gateway is running') }, /role="alert"><b>No gateway is running<\/b><div>It runs on this machine.*<button[^>]*>Start</],
    ['it did not start', 'offline', false, { error: down('it ended:\nport <taken>') }, /No gateway is running.*it ended:\nport &lt;taken&gt;.*<button[^>]*>Start</s],
    ['it refuses', 'offline', false, { error: { code: 'request.unauthenticated', message: 'the token expired' } }, /the token expired.*Start</],
    ['it went away', 'offline', false, { status: STATUS }, /The gateway is gone.*What is shown is of before\..*<button[^>]*>Start</],
    ['the Jupyter server went away', 'disconnected', false, {}, /does not answer.*tried again by itself; if it was stopped, start it again/],
    ['the login is over', 'logged-out', false, {}, /logged out of Jupyter.*<a [^>]*href="\/hub\/login"[^>]*>Log in again<\/a>/]
  ])('%s', (_, connection, starting, more, words) => {
    expect(shown(<Banner />, connection, starting, more)).toMatch(words);
  });
});

describe('what else volumes= shows', () => {
  const bucket = (more: object): object => ({
    volume: 'b-1', name: 's3://training-data/<2026>', path: '/data', kind: 'bucket', bucket: { name: 'training-data', secret: 'aws', endpoint_url: 'https://minio.example.org' }, ...more
  });
  const session = (more: object): object => ({ id: 's-1', notebook: '/n/train.ipynb', name: 'default', state: 'busy', container: { id: 'c-1' }, ...more });

  test('the buckets that containers have, where and how; none of what is parked', () => {
    const volume = { volume: 'v-1', name: 'sets', path: '/sets', kind: 'volume' };
    const status = {
      ...STATUS,
      sessions: [
        session({ volumes: [bucket({ read_only: true }), volume] }), session({ id: 's-2', name: 'two', volumes: [bucket({ path: '/b' })] }),
        session({ id: 's-3', container: null, state: 'parked', parked: {}, volumes: [bucket({ path: '/parked' })] })
      ]
    } as unknown as Status;
    const text = shown(<Buckets status={status} />);
    expect(text).toMatch(/Buckets in containers.*s3:\/\/training-data\/&lt;2026&gt;.*read-only.*\/data in train\.ipynb.*writable.*\/b in train\.ipynb: two/s);
    expect(text).toMatch(/title="[^"]*https:\/\/minio\.example\.org\nsecret aws"/);
    expect(text).not.toMatch(/>sets|\/parked/);
    expect(shown(<Buckets status={STATUS} />)).toBe('');
  });

  test('network file systems, and what to do where there are none', () => {
    listIs({ value: { rows: [{ name: 'scratch', used_by: ['session a of b (idle)'] }] } });
    expect(shown(<Shareds active />)).toMatch(/Network file systems.*aria-label="New network file system".*scratch.*aria-label="Delete scratch".*used by session a/);
    listIs({ value: {} });
    expect(shown(<Shareds active />)).toMatch(/None yet\..*<code>volumes=\/data:nfs:\/\/NAME<\/code>/);
  });
});

describe('what a run left', () => {
  const run = (more: Partial<RunRow>): RunRow => ({ id: 'r-1', schedule: 's', name: 'n', instant_unix_seconds: 1, state: 'failed', ...more });

  test('its error whole, with the cell, its notes, its notebook and its files', () => {
    const text = shown(
      <RunLeft
        notebook="/n.ipynb"
        run={run({
          cell: 2, cells_count: 5, has_notebook: true, notes: ['attempt 1 failed: ValueError'], files: [{ path: 'out/a<b>.csv', size_bytes: 1500 }],
          error: { code: 'user_code.raised', message: 'ValueError: spilt', next: 'mend the cell' } as ErrorInfo
        })}
      />
    );
    expect(text).toMatch(/ended in cell 2 of 5.*ValueError: spilt.*mend the cell.*attempt 1 failed.*Open its notebook, with all outputs/);
    expect(text).toMatch(/<a [^>]*href="\/files\/r-1\/out\/a&lt;b&gt;\.csv" download="a&lt;b&gt;\.csv"[^>]*>out\/a&lt;b&gt;\.csv<\/a>.*1\.5 kB/);
  });

  test('nothing, or nothing yet', () => {
    expect(shown(<RunLeft notebook="n" run={run({ state: 'succeeded' })} />)).toMatch(/left no files beside its notebook/);
    expect(shown(<RunLeft notebook="n" run={run({ state: 'running' })} />)).toMatch(/listed when it has ended/);
  });
});
