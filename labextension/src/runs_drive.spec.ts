import { RunRow } from './protocol';
import { runOf, runPath, RunsDrive } from './runs_drive';

const run = { id: 'r1', schedule: 's', name: 'n', state: 'failed', instant_unix_seconds: 1_790_000_000 } as RunRow;

test('a run has a path of its own', () => {
  const path = runPath(run, '/home/ann/a:b.ipynb');
  expect(path).toMatch(/^cellburst-runs:r1\/a-b 2026-09-2\d \d\d\.\d\d\.ipynb$/);
  expect([runOf(path.slice('cellburst-runs:'.length)), runOf('/r2/x.ipynb'), runOf('')]).toEqual(['r1', 'r2', '']);
});

test('its notebook is asked for when it is opened, and cannot be written', async () => {
  const asked: string[] = [];
  const api = { settings: {}, runNotebook: async (id: string) => (asked.push(id), { cells: [] }), runNotebookUrl: (id: string) => `/x/${id}` } as any;
  const drive = new RunsDrive(api);
  expect(await drive.get('r1/n.ipynb', { content: false })).toMatchObject({ type: 'notebook', writable: false, content: null });
  expect(asked).toEqual([]);
  expect(await drive.get('r1/n.ipynb')).toMatchObject({ type: 'notebook', format: 'json', writable: false, content: { cells: [] }, name: 'n.ipynb' });
  expect(asked).toEqual(['r1']);
  expect(await drive.get('')).toMatchObject({ type: 'directory', content: [] });
  expect(await drive.getDownloadUrl('r1/n.ipynb')).toBe('/x/r1');
  expect(await drive.listCheckpoints()).toEqual([]);
  for (const write of [drive.save, drive.delete, drive.rename, drive.copy, drive.newUntitled, drive.createCheckpoint, drive.restoreCheckpoint]) {
    await expect((write as any)('r1/n.ipynb')).rejects.toThrow('read only');
  }
  drive.dispose();
  expect(drive.isDisposed).toBe(true);
});
