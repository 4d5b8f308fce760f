/** Long words at the edge of the window: of a failed action and of a failed run the end is what says what to do. */

import * as React from 'react';
import { ApiError } from './api';
import { tried } from './dialogs';
import { RunRow } from './protocol';
import { Teller } from './tell';

interface IEmitted {
  words: string;
  kind: string;
  how: { autoClose: number | false; actions: { label: string; callback(): void }[] };
}

const mockEmitted: IEmitted[] = [];
const mockDialogs: { title: string; body: React.ReactElement<{ children: string }> }[] = [];
jest.mock('@jupyterlab/apputils', () => ({
  Notification: { emit: (words: string, kind: string, how: IEmitted['how']) => void mockEmitted.push({ words, kind, how }) },
  Dialog: { okButton: () => ({}) },
  showDialog: async (what: (typeof mockDialogs)[number]) => void mockDialogs.push(what),
  ReactWidget: class {}
}));
jest.mock('@jupyterlab/services', () => ({ ServerConnection: {} }));
jest.mock('@jupyterlab/coreutils', () => ({ URLExt: {} }));
(globalThis as any).document = { hidden: false };
(globalThis as any).window = { setInterval: () => 0 };

const NEXT = 'choose another name: letters, digits and dashes';
const LONG = { code: 'request.bad_argument' as const, message: `a name of ${'many '.repeat(40)}letters`, allowed: 'at most 64 letters', next: NEXT };

beforeEach(() => {
  mockEmitted.length = 0;
  mockDialogs.length = 0;
});

/** The whole text, as a person gets it: what is shown, or what "More" opens. */
function read({ words, how }: IEmitted): string {
  const more = how.actions.find(one => one.label === 'More');
  if (!more) {
    return words;
  }
  more.callback();
  return mockDialogs[mockDialogs.length - 1].body.props.children;
}

test('what failed and why, to its end', async () => {
  expect(await tried('The volume was not made', () => Promise.reject(new ApiError(LONG, 400)))).toBe(false);
  expect(mockEmitted[0].words.length).toBeLessThanOrEqual(140);
  expect(mockEmitted[0].words).toMatch(/^The volume was not made\. a name of many/);
  expect(mockEmitted[0].how.autoClose).toBe(false);
  expect(read(mockEmitted[0])).toMatch(new RegExp(`^The volume was not made\\. a name.*allowed: at most 64 letters\\. ${NEXT}$`));
});

test('what is short is shown whole, without a button for more', async () => {
  await tried('Not renamed', () => Promise.reject(new Error('no')));
  expect(mockEmitted).toEqual([{ words: 'Not renamed. no', kind: 'error', how: { autoClose: 15_000, actions: [] } }]);
});

test('why a run failed, to its end', async () => {
  const run: RunRow = { id: 'r', schedule: 's', name: 'nightly', instant_unix_seconds: 1, state: 'failed', error: LONG, has_notebook: true, ended_unix_seconds: 2 };
  const trans = { __: (text: string, ...given: unknown[]) => text.replace(/%(\d)/g, (_, at) => String(given[Number(at) - 1])) };
  const asked = { ends: [{ runs: [run] }, {}] };
  const api = { settings: { baseUrl: '/' }, takeEnds: async () => asked.ends.shift() ?? {} };
  const live = { connection: 'live', status: null, changed: { connect: () => true } };
  const nothing = (): void => undefined;
  const panel = { title: { caption: '', className: '' } };
  const teller = new Teller({
    trans, api, live, panel, storage: null, openPath: nothing, openRun: nothing, openPanel: nothing, runsChanged: nothing
  } as any);
  teller.start();
  await new Promise<void>(done => (globalThis as any).setImmediate(done)); // all answers are there then
  expect(mockEmitted.map(one => one.how.actions.map(action => action.label))).toEqual([['More', 'Open it']]);
  expect(read(mockEmitted[0])).toMatch(new RegExp(`^The scheduled run of nightly has failed: a name of many.*${NEXT}$`));
});
