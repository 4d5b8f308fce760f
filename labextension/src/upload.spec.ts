import { Chunk } from './protocol';
import { PIECE_BYTES, sendFile } from './upload';

const SIZE = 3 * PIECE_BYTES + 5;
const file = { size: SIZE, lastModified: 2000, slice: (start: number, end: number) => ({ size: end - start, start }) as unknown as Blob };

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
  const sent = await sendFile(file, 'a/b', to, new AbortController().signal, bytes => seen.push(bytes));
  expect(sent).toEqual({
    path: 'a/b', size_bytes: SIZE, modified_unix_seconds: 2,
    chunks: [0, 1, 2, 3].map(index => [`h${index * PIECE_BYTES}`, index === 3 ? 5 : PIECE_BYTES])
  });
  expect(seen[seen.length - 1]).toBe(SIZE);
});

test('an empty file has no pieces', async () => {
  const to = sender(() => new Error('none is sent'));
  const sent = await sendFile({ ...file, size: 0 }, 'empty', to, new AbortController().signal, () => undefined);
  expect([sent.size_bytes, sent.chunks]).toEqual([0, []]);
});

test('a piece that fails is sent again, one that is refused is not', async () => {
  const cut = sender((piece, tries) => (tries < 3 ? new Error('cut') : ['h', piece.size]));
  await sendFile(file, 'x', cut, new AbortController().signal, () => undefined);
  expect(cut.calls.length).toBe(12);
  expect(cut.pauses.length).toBe(8);
  const refused = sender(() => Object.assign(new Error('too large'), { status: 413 }));
  await expect(sendFile(file, 'x', refused, new AbortController().signal, () => undefined)).rejects.toThrow('too large');
  expect(refused.pauses).toEqual([]);
});

test('a cancelled upload sends nothing more', async () => {
  const stop = new AbortController();
  const to = sender(piece => {
    stop.abort();
    return ['h', piece.size];
  });
  await expect(sendFile({ ...file, size: 40 * PIECE_BYTES }, 'x', to, stop.signal, () => undefined)).rejects.toThrow('cancelled');
  expect(to.calls.length).toBeLessThanOrEqual(4);
});
