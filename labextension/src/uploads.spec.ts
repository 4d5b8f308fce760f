import type { IServerFile } from './drops';
import { Chunk, NewFile } from './protocol';
import { PIECE_BYTES } from './upload';
import { IKeptUpload, IUploadPlace, Uploads, keptUploads } from './uploads';

const SIZE = 4 * PIECE_BYTES;
const file = { size: SIZE, lastModified: 7, slice: (start: number, end: number) => ({ size: end - start, start }) as unknown as Blob };

class Place implements IUploadPlace {
  sent: number[] = [];
  published: NewFile[] = [];
  saved: IKeptUpload[] = [];
  gone: string[] = [];
  failAt = -1;
  replace = true;

  constructor(private had: IKeptUpload[] = []) {}

  sender() {
    return {
      send: async (piece: Blob): Promise<Chunk> => {
        const start = (piece as unknown as { start: number }).start;
        if (start === this.failAt) {
          throw Object.assign(new Error('refused'), { status: 413 });
        }
        this.sent.push(start / PIECE_BYTES);
        return [`h${start / PIECE_BYTES}`, piece.size];
      },
      pause: async () => undefined
    };
  }

  missing = async (_: string, hashes: string[]): Promise<string[]> => hashes.filter(hash => this.gone.includes(hash));
  publish = async (_: string, sent: NewFile): Promise<boolean> => (this.published.push(sent), this.replace);
  serverFiles: Record<string, IServerFile> = {};
  isReady: Promise<void> = Promise.resolve();
  serverFile = async (path: string): Promise<IServerFile> => {
    if (!this.serverFiles[path]) {
      throw new Error(`${path} is gone`);
    }
    return this.serverFiles[path];
  };
  ready = (): Promise<void> => this.isReady;
  load = async (): Promise<IKeptUpload[]> => this.had;
  save = (kept: IKeptUpload[]): void => void (this.saved = JSON.parse(JSON.stringify(kept)));
  later = (action: () => void): number => (action(), 1);
  words = (error: unknown): string => (error as Error).message;
}

test('an upload is shown while it runs, kept piece by piece, and forgotten when it is done', async () => {
  const place = new Place();
  const uploads = new Uploads(place);
  const seen: number[] = [];
  const kept: number[] = [];
  uploads.changed.connect(() => {
    const [one] = uploads.of('v');
    if (one) {
      seen.push(one.sent);
      kept.push(place.saved[0]?.hashes.filter(Boolean).length ?? 0);
    }
  });
  let done = 0;
  await uploads.add('v', [{ path: 'a/x', file }], () => (done += 1));
  expect(Math.max(...seen)).toBe(SIZE);
  expect(Math.max(...kept)).toBe(4);
  expect([done, uploads.of('v'), place.saved, uploads.busy]).toEqual([1, [], [], false]);
  expect(place.published[0]).toMatchObject({ path: 'a/x', size_bytes: SIZE });
});

test('after a reload only what is not there is sent, when the same file is picked', async () => {
  const had = { volume: 'v', path: 'x', size: SIZE, lastModified: 7, hashes: ['h0', '', 'h2'] };
  const place = new Place([had]);
  place.gone = ['h2'];
  const uploads = new Uploads(place);
  await Promise.resolve();
  expect(uploads.of('v')[0]).toMatchObject({ state: 'stopped', sent: 2 * PIECE_BYTES, size: SIZE });
  await uploads.add('v', [{ path: 'x', file }], () => undefined);
  expect(place.sent).toEqual([1, 2, 3]);
  expect(place.published[0].chunks!.map(chunk => chunk[0])).toEqual(['h0', 'h1', 'h2', 'h3']);
});

test('another file of that name is sent whole', async () => {
  const had = { volume: 'v', path: 'x', size: SIZE, lastModified: 6, hashes: ['h0', 'h1'] };
  const place = new Place([had]);
  const uploads = new Uploads(place);
  await Promise.resolve();
  await uploads.add('v', [{ path: 'x', file }], () => undefined);
  expect(place.sent).toEqual([0, 1, 2, 3]);
});

test('an error stays to be read, and the next try goes on', async () => {
  const place = new Place();
  const uploads = new Uploads(place);
  place.failAt = 3 * PIECE_BYTES;
  await uploads.add('v', [{ path: 'x', file }], () => undefined);
  expect(uploads.of('v')[0]).toMatchObject({ state: 'failed', error: 'refused' });
  place.failAt = -1;
  place.sent = [];
  await uploads.add('v', [{ path: 'x', file }], () => undefined);
  expect(place.sent).toEqual([3]);
  expect(uploads.of('v')).toEqual([]);
});

test('one that is forgotten is neither published nor kept', async () => {
  const place = new Place();
  const uploads = new Uploads(place);
  uploads.changed.connect(() => {
    const [one] = uploads.of('v');
    if (one && one.sent >= PIECE_BYTES) {
      uploads.forget(one);
    }
  });
  await uploads.add('v', [{ path: 'x', file }, { path: 'y', file }], () => undefined);
  expect([place.published, place.saved, uploads.of('v')]).toEqual([[], [], []]);
});

/** A file of the Jupyter server: `begun` is with which pieces it was opened. */
function served(more: Partial<IServerFile> = {}): IServerFile & { begun: number[] } {
  const begun: number[] = [];
  const open = async (_: AbortSignal, first: number) => {
    begun.push(first);
    let next = first;
    return {
      lastModified: 7,
      take: async (skip: (index: number) => boolean) => {
        while (next < 4 && skip(next)) {
          next += 1;
        }
        const index = next++;
        return index < 4 ? { index, piece: file.slice(index * PIECE_BYTES, (index + 1) * PIECE_BYTES) } : null;
      }
    };
  };
  return { path: 'x', origin: 'mine/x', size: SIZE, lastModified: 7, open, unchanged: async () => true, begun, ...more };
}

async function settled(uploads: Uploads): Promise<void> {
  for (let turn = 0; turn < 200 && uploads.busy; turn++) {
    await Promise.resolve();
  }
}

test("after a reload the Jupyter server's files go on by themselves when the gateway answers, with what is not there", async () => {
  const had = { volume: 'v', path: 'x', size: SIZE, lastModified: 7, hashes: ['h0', '', 'h2'], origin: 'mine/x' };
  const place = new Place([had, { ...had, path: 'y', origin: 'mine/y', hashes: [] }]);
  place.serverFiles = { 'mine/x': served(), 'mine/y': served({ path: 'y', origin: 'mine/y' }) };
  let start: () => void = () => undefined;
  place.isReady = new Promise(resolve => (start = resolve));
  const uploads = new Uploads(place);
  for (let turn = 0; turn < 20; turn++) {
    await Promise.resolve();
  }
  expect(uploads.of('v').map(one => one.state)).toEqual(['waiting', 'waiting']);
  expect([place.sent, uploads.of('v')[0].sent]).toEqual([[], 2 * PIECE_BYTES]);
  start();
  await settled(uploads);
  expect((place.serverFiles['mine/x'] as ReturnType<typeof served>).begun).toEqual([1]);
  expect(place.sent).toEqual([1, 3, 0, 1, 2, 3]);
  expect(place.published.map(one => one.path)).toEqual(['x', 'y']);
  expect([uploads.of('v'), place.saved]).toEqual([[], []]);
});

test("one that has changed since is sent whole; one that is gone, or changes meanwhile, is said and can be gone on with", async () => {
  const had = { volume: 'v', path: 'x', size: SIZE, lastModified: 6, hashes: ['old'], origin: 'mine/x' };
  const place = new Place([had]);
  const uploads = new Uploads(place);
  await Promise.resolve();
  await settled(uploads);
  expect(uploads.of('v')[0]).toMatchObject({ state: 'failed', error: 'mine/x is gone', origin: 'mine/x' });
  place.serverFiles = { 'mine/x': served({ unchanged: async () => false }) };
  await uploads.goOn(uploads.of('v')[0]);
  expect(uploads.of('v')[0]).toMatchObject({ state: 'failed', error: 'x changed while it was read' });
  expect([place.published, place.saved]).toEqual([[], []]);
  place.serverFiles = { 'mine/x': served() };
  place.sent = [];
  await uploads.goOn(uploads.of('v')[0]);
  expect([place.sent, uploads.of('v')]).toEqual([[0, 1, 2, 3], []]);
});

test("files of the Jupyter server that wait for their turn are kept before they begin", async () => {
  const place = new Place();
  const uploads = new Uploads(place);
  const kept: string[][] = [];
  uploads.changed.connect(() => kept.push(place.saved.map(one => `${one.origin}`)));
  const other = served({ path: 'y', origin: 'mine/y' });
  await uploads.addServerFiles('v', [{ path: 'x', file: served() }, { path: 'y', file: other }], () => undefined);
  expect(kept[0]).toEqual(['mine/x', 'mine/y']);
  expect([place.sent.length, place.saved]).toEqual([8, []]);
});

test('what was kept in another shape is not taken', () => {
  const good = { volume: 'v', path: 'x', size: 1, lastModified: 2, hashes: ['h'] };
  expect(keptUploads([good, { ...good, hashes: [3] }, { ...good, size: 'x' }, { ...good, origin: 3 }, null, 7])).toEqual([good]);
  expect(keptUploads(undefined)).toEqual([]);
});
