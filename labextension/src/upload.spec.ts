import { Chunk } from './protocol';
import { IPieces, PIECE_BYTES, fileSource, sendFile, streamSource } from './upload';

const SIZE = 3 * PIECE_BYTES + 5;
const file = { size: SIZE, lastModified: 2000, slice: (start: number, end: number) => ({ size: end - start, start }) as unknown as Blob } as IPieces;

function sender(send: (piece: { size: number; start: number }, tries: number) => Chunk | Error): { calls: number[]; pauses: number[]; send: any; pause: any } {
  const calls: number[] = [];
  const pauses: number[] = [];
  return {
    calls, pauses,
    send: async (piece: { size: number; start: number }) => {
      calls.push(piece.start);
      const answer = send(piece, calls.filter(start => start === piece.start).length);
      if (answer instanceof Error) {
        throw answer;
      }
      return answer;
    },
    pause: async (milliseconds: number) => void pauses.push(milliseconds)
  };
}

test('pieces come in the order of the file, with progress', async () => {
  const to = sender(piece => [`h${piece.start}`, piece.size]);
  const seen: number[] = [];
  const sent = await sendFile(fileSource(file), 'a/b', to, new AbortController().signal, bytes => seen.push(bytes));
  expect(sent).toEqual({
    path: 'a/b', size_bytes: SIZE, modified_unix_seconds: 2,
    chunks: [0, 1, 2, 3].map(index => [`h${index * PIECE_BYTES}`, index === 3 ? 5 : PIECE_BYTES])
  });
  expect(seen[seen.length - 1]).toBe(SIZE);
});

test('an empty file has no pieces', async () => {
  const to = sender(() => new Error('none is sent'));
  const sent = await sendFile(fileSource({ ...file, size: 0 }), 'empty', to, new AbortController().signal, () => undefined);
  expect([sent.size_bytes, sent.chunks]).toEqual([0, []]);
});

test('a piece that fails is sent again, one that is refused is not', async () => {
  const cut = sender((piece, tries) => (tries < 3 ? new Error('cut') : ['h', piece.size]));
  await sendFile(fileSource(file), 'x', cut, new AbortController().signal, () => undefined);
  expect(cut.calls.length).toBe(12);
  expect(cut.pauses.length).toBe(8);
  const refused = sender(() => Object.assign(new Error('too large'), { status: 413 }));
  await expect(sendFile(fileSource(file), 'x', refused, new AbortController().signal, () => undefined)).rejects.toThrow('too large');
  expect(refused.pauses).toEqual([]);
});

test('a cancelled upload sends nothing more', async () => {
  const stop = new AbortController();
  const to = sender(piece => {
    stop.abort();
    return ['h', piece.size];
  });
  await expect(sendFile(fileSource({ ...file, size: 40 * PIECE_BYTES }), 'x', to, stop.signal, () => undefined)).rejects.toThrow('cancelled');
  expect(to.calls.length).toBeLessThanOrEqual(4);
});

test('a piece that is there already is neither read nor sent', async () => {
  const to = sender(piece => [`h${piece.start}`, piece.size]);
  const read: number[] = [];
  const watched = { ...file, slice: (start: number, end: number) => (read.push(start), file.slice(start, end)) };
  const seen: number[] = [];
  const known = [['k0', PIECE_BYTES], null, ['k2', PIECE_BYTES]] as any;
  const sent = await sendFile(fileSource(watched), 'x', to, new AbortController().signal, bytes => seen.push(bytes), known);
  expect(read).toEqual([PIECE_BYTES, 3 * PIECE_BYTES]);
  expect(to.calls).toEqual(read);
  expect(sent.chunks!.map(chunk => chunk[0])).toEqual(['k0', `h${PIECE_BYTES}`, 'k2', `h${3 * PIECE_BYTES}`]);
  expect([seen[seen.length - 1], sent.size_bytes]).toEqual([SIZE, SIZE]);
});

test('a stream is cut into whole pieces, whatever it comes in', async () => {
  const sizes = [1, PIECE_BYTES - 2, 7, 2 * PIECE_BYTES, 0, 3];
  const total = sizes.reduce((sum, size) => sum + size, 0);
  const stream = new ReadableStream<Uint8Array<ArrayBuffer>>({
    start(controller) {
      sizes.forEach((size, number) => controller.enqueue(new Uint8Array(size).fill(number)));
      controller.close();
    }
  });
  const got: Blob[] = [];
  const to = { send: async (piece: Blob) => (got.push(piece), ['h', piece.size] as any), pause: async () => undefined };
  const sent = await sendFile(streamSource(stream), 'x', to, new AbortController().signal, () => undefined);
  expect(got.map(piece => piece.size)).toEqual([PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, total - 3 * PIECE_BYTES]);
  expect(sent.size_bytes).toBe(total);
  const bytes = new Uint8Array(await new Blob(got).arrayBuffer());
  expect([bytes[0], bytes[1], bytes[PIECE_BYTES - 2], bytes[PIECE_BYTES - 1], bytes[bytes.length - 1]]).toEqual([0, 1, 1, 2, 5]);
});

test('a stream that begins in the middle leaves out what is there already', async () => {
  const rest = new Blob([new Uint8Array(3 * PIECE_BYTES + 5)]).stream() as ReadableStream<Uint8Array<ArrayBuffer>>;
  const got: number[] = [];
  const to = { send: async (piece: Blob) => (got.push(piece.size), [`n${got.length}`, piece.size] as any), pause: async () => undefined };
  const known = [['k0', PIECE_BYTES], null, ['k2', PIECE_BYTES]] as any;
  const sent = await sendFile(streamSource(rest, 7, 1), 'x', to, new AbortController().signal, () => undefined, known);
  expect(got.sort((a, b) => b - a)).toEqual([PIECE_BYTES, PIECE_BYTES, 5]);
  expect(sent.chunks!.map(chunk => chunk[0][0])).toEqual(['k', 'n', 'k', 'n', 'n']);
  expect(sent).toMatchObject({ size_bytes: 4 * PIECE_BYTES + 5, modified_unix_seconds: 0.007 });
});

test('a stream that breaks is an error, and nothing more is sent', async () => {
  const stream = new ReadableStream<Uint8Array<ArrayBuffer>>({ pull: () => Promise.reject(new Error('the source is gone')) });
  const to = sender(() => new Error('none is sent'));
  await expect(sendFile(streamSource(stream), 'x', to, new AbortController().signal, () => undefined)).rejects.toThrow('the source is gone');
  expect(to.calls).toEqual([]);
});
