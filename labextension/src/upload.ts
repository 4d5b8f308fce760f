/** A file to a volume in pieces: flat memory, progress, a piece that fails is sent again, one that is known to be there is not. */

import { Chunk, NewFile } from './protocol';

export const PIECE_BYTES = 8 * 1024 * 1024;
const AT_ONCE = 3;
const TRIES = 5;

export interface IPieces {
  size: number;
  lastModified?: number;
  slice(start: number, end: number): Blob;
}

/** What is sent, piece by piece in the order of the file. `take` gives the next one that `skip` does not leave out. */
export interface ISource {
  readonly lastModified?: number;
  take(skip: (index: number) => boolean): Promise<{ index: number; piece: Blob } | null>;
}

export interface ISender {
  /** Sends a piece. An error with `status` of 400 to 499 is final. */
  send(piece: Blob, signal: AbortSignal): Promise<Chunk>;
  /** Waits before the next try. */
  pause(milliseconds: number): Promise<void>;
}

/** A file's pieces: only those that are sent are ever read. */
export function fileSource(file: IPieces): ISource {
  const count = Math.ceil(file.size / PIECE_BYTES);
  let next = 0;
  return {
    lastModified: file.lastModified,
    take: async skip => {
      while (next < count && skip(next)) {
        next += 1;
      }
      const index = next++;
      return index < count ? { index, piece: file.slice(index * PIECE_BYTES, Math.min(file.size, (index + 1) * PIECE_BYTES)) } : null;
    }
  };
}

/** The pieces of something that comes in its own order and sizes, such as a download. It begins with the piece `index`; pieces that are
 *  there already are read, and left out. */
export function streamSource(stream: ReadableStream<Uint8Array<ArrayBuffer>>, lastModified?: number, index = 0): ISource {
  const reader = stream.getReader();
  let rest: Uint8Array<ArrayBuffer> | null = null;
  let ended = false;
  return {
    lastModified,
    take: async skip => {
      for (;;) {
        const parts: Uint8Array<ArrayBuffer>[] = [];
        let bytes = 0;
        while (bytes < PIECE_BYTES && !ended) {
          if (!rest) {
            const got = await reader.read();
            ended = got.done;
            rest = got.value ?? null;
            continue;
          }
          const part: Uint8Array<ArrayBuffer> = rest.subarray(0, PIECE_BYTES - bytes);
          rest = part.length < rest.length ? rest.subarray(part.length) : null;
          parts.push(part);
          bytes += part.length;
        }
        if (!bytes) {
          return null;
        }
        if (!skip(index++)) {
          return { index: index - 1, piece: new Blob(parts) };
        }
      }
    }
  };
}

/**
 * Send all pieces, three at a time. `known` are pieces that are there already; `onProgress` is called with the bytes that are there
 * and all pieces so far. Rejects with the first error that trying again did not mend, or when aborted.
 */
export async function sendFile(
  source: ISource, path: string, sender: ISender, signal: AbortSignal, onProgress: (bytes: number, chunks: (Chunk | null)[]) => void,
  known: (Chunk | null)[] = []
): Promise<NewFile> {
  const chunks: (Chunk | null)[] = [...known];
  let sent = known.reduce((sum, chunk) => sum + (chunk?.[1] ?? 0), 0);
  let over = false;
  let turn: Promise<unknown> = Promise.resolve();
  const take = (): ReturnType<ISource['take']> => {
    const mine = turn.then(() => (over ? null : source.take(index => !!chunks[index])));
    turn = mine.catch(() => undefined);
    return mine;
  };
  const work = async (): Promise<void> => {
    for (let next = await take(); next; next = await take()) {
      chunks[next.index] = await sendPiece(next.piece, sender, signal);
      sent += next.piece.size;
      onProgress(sent, chunks);
    }
  };
  try {
    await Promise.all(Array.from({ length: AT_ONCE }, work));
  } catch (error) {
    over = true;
    throw error;
  }
  const all = chunks.map(chunk => chunk!);
  const size = all.reduce((sum, chunk) => sum + chunk[1], 0);
  return { path, size_bytes: size, chunks: all, modified_unix_seconds: (source.lastModified ?? 0) / 1000 };
}

async function sendPiece(piece: Blob, sender: ISender, signal: AbortSignal): Promise<Chunk> {
  for (let attempt = 1; ; attempt++) {
    if (signal.aborted) {
      throw new Error('The upload was cancelled.');
    }
    try {
      return await sender.send(piece, signal);
    } catch (error) {
      const status = (error as { status?: number }).status ?? 0;
      if (signal.aborted || attempt === TRIES || (status >= 400 && status < 500)) {
        throw error;
      }
      await sender.pause(250 * 2 ** attempt);
    }
  }
}
