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

test('what was kept in another shape is not taken', () => {
  const good = { volume: 'v', path: 'x', size: 1, lastModified: 2, hashes: ['h'] };
  expect(keptUploads([good, { ...good, hashes: [3] }, { ...good, size: 'x' }, null, 7])).toEqual([good]);
  expect(keptUploads(undefined)).toEqual([]);
});
