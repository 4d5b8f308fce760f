/** A file to a volume in pieces: flat memory, progress, and a piece that fails is sent again. */

import { Chunk, NewFile } from './protocol';

export const PIECE_BYTES = 8 * 1024 * 1024;
const AT_ONCE = 3;
const TRIES = 5;

export interface IPieces {
  size: number;
  lastModified?: number;
  slice(start: number, end: number): Blob;
}

export interface ISender {
  /** Sends a piece. An error with `status` of 400 to 499 is final. */
  send(piece: Blob, signal: AbortSignal): Promise<Chunk>;
  /** Waits before the next try. */
  pause(milliseconds: number): Promise<void>;
}

/** Send all pieces, three at a time. Rejects with the first error that trying again did not mend, or when aborted. */
export async function sendFile(
  file: IPieces, path: string, sender: ISender, signal: AbortSignal, onProgress: (bytes: number) => void
): Promise<NewFile> {
  const count = Math.ceil(file.size / PIECE_BYTES);
  const chunks: Chunk[] = new Array(count);
  let next = 0;
  let sent = 0;
  const work = async (): Promise<void> => {
    while (next < count) {
      const index = next++;
      const start = index * PIECE_BYTES;
      const piece = file.slice(start, Math.min(file.size, start + PIECE_BYTES));
      chunks[index] = await sendPiece(piece, sender, signal);
      sent += piece.size;
      onProgress(sent);
    }
  };
  try {
    await Promise.all(Array.from({ length: Math.min(AT_ONCE, count) }, work));
  } catch (error) {
    next = count;
    throw error;
  }
  return { path, size_bytes: file.size, chunks, modified_unix_seconds: (file.lastModified ?? 0) / 1000 };
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
