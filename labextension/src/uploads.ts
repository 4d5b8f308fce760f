/** All uploads of this window: they go on while their folder is not shown, and after a reload where they were. */

import { ISignal, Signal } from '@lumino/signaling';
import { Chunk, NewFile } from './protocol';
import { IPieces, ISender, ISource, PIECE_BYTES, fileSource, sendFile } from './upload';

const KEY = '@cellburst/labextension:uploads';
const SAVE_MS = 1000; // what was sent in the last second before a reload is sent once more
const MAX_KEPT_PIECES = 4000; // of one file, 32 GB: 300 KB in the workspace. What lies beyond is sent again
const MAX_KEPT = 20;

/** An upload as it is kept: `hashes` are of the pieces that are there, "" of one that is not. */
export interface IKeptUpload {
  volume: string;
  path: string;
  size: number;
  lastModified: number;
  hashes: string[];
}

/** An upload as it is shown. */
export interface ITransfer {
  volume: string;
  path: string;
  size: number;
  sent: number;
  /** `stopped`: the page was reloaded, and the file has to be picked again. */
  state: 'waiting' | 'running' | 'failed' | 'stopped';
  error?: string;
  /** The same file, picked again, goes on where it was. */
  resumable: boolean;
}

/** What it needs of the server, of JupyterLab and of the person. */
export interface IUploadPlace {
  sender(volume: string): ISender;
  missing(volume: string, hashes: string[]): Promise<string[]>;
  /** Commits a file; false when the person does not want what is there to be replaced. */
  publish(volume: string, file: NewFile): Promise<boolean>;
  load(): Promise<IKeptUpload[]>;
  save(kept: IKeptUpload[]): void;
  later(action: () => void, milliseconds: number): number;
  words(error: unknown): string;
}

interface IEntry extends ITransfer {
  kept: IKeptUpload | null;
  stop: AbortController;
}

export const STATE_KEY = KEY;

export class Uploads {
  constructor(private place: IUploadPlace) {
    void this._load();
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** Those of one volume, in the order in which they began. */
  of(volume: string): ITransfer[] {
    return this._entries.filter(entry => entry.volume === volume);
  }

  /** Whether any is under way: a page that is left now ends it. */
  get busy(): boolean {
    return this._entries.some(entry => entry.state === 'running' || entry.state === 'waiting');
  }

  /** Upload files one after the other; each is in the volume when `done` is called for it. */
  async add(volume: string, files: { path: string; file: IPieces }[], done: () => void): Promise<void> {
    const entries = files.map(({ path, file }) => {
      const old = this._find(volume, path);
      old?.stop.abort();
      const lastModified = file.lastModified ?? 0;
      const same = old?.kept && old.kept.size === file.size && old.kept.lastModified === lastModified ? old.kept : null;
      const kept = same ?? { volume, path, size: file.size, lastModified, hashes: [] };
      return { file, entry: this._put({ volume, path, size: file.size, sent: 0, state: 'waiting', resumable: true, kept, stop: new AbortController() }) };
    });
    this._emit();
    for (const { file, entry } of entries) {
      await this._run(entry, async () => fileSource(file), done);
    }
  }

  /** Upload something that is not a file of this machine; it cannot be gone on with after a reload. */
  async addSource(volume: string, path: string, size: number, open: (signal: AbortSignal) => Promise<ISource>, done: () => void): Promise<void> {
    this._find(volume, path)?.stop.abort();
    const stop = new AbortController();
    const entry = this._put({ volume, path, size, sent: 0, state: 'waiting', resumable: false, kept: null, stop });
    this._emit();
    await this._run(entry, () => open(stop.signal), done);
  }

  /** End an upload, or take away what is said of one. */
  forget(transfer: ITransfer): void {
    const entry = this._find(transfer.volume, transfer.path);
    entry?.stop.abort();
    this._entries = this._entries.filter(one => one !== entry);
    this._save();
    this._emit();
  }

  private async _run(entry: IEntry, open: () => Promise<ISource>, done: () => void): Promise<void> {
    if (entry.stop.signal.aborted) {
      return;
    }
    try {
      entry.state = 'running';
      const known = entry.kept ? await this._known(entry.kept) : [];
      entry.sent = known.reduce((sum, chunk) => sum + (chunk?.[1] ?? 0), 0);
      this._emit();
      const source = await open();
      const sent = await sendFile(source, entry.path, this.place.sender(entry.volume), entry.stop.signal, (bytes, chunks) => {
        entry.sent = bytes;
        if (entry.kept) {
          entry.kept.hashes = chunks.slice(0, MAX_KEPT_PIECES).map(chunk => chunk?.[0] ?? '');
          this._saveSoon();
        }
        this._emit();
      }, known);
      if (entry.stop.signal.aborted) {
        return;
      }
      const published = await this.place.publish(entry.volume, sent);
      this._remove(entry);
      if (published) {
        done();
      }
    } catch (error) {
      if (!entry.stop.signal.aborted) {
        entry.state = 'failed';
        entry.error = this.place.words(error);
        this._emit();
      }
    }
  }

  /** The pieces of a kept upload that the gateway still has. */
  private async _known(kept: IKeptUpload): Promise<(Chunk | null)[]> {
    const hashes = [...kept.hashes].filter(Boolean);
    if (!hashes.length) {
      return [];
    }
    const missing = new Set(await this.place.missing(kept.volume, hashes));
    return [...kept.hashes].map((hash, index) =>
      hash && !missing.has(hash) ? ([hash, Math.min(PIECE_BYTES, kept.size - index * PIECE_BYTES)] as Chunk) : null
    );
  }

  private _find(volume: string, path: string): IEntry | undefined {
    return this._entries.find(entry => entry.volume === volume && entry.path === path);
  }

  private _put(entry: IEntry): IEntry {
    this._entries = [...this._entries.filter(one => one.volume !== entry.volume || one.path !== entry.path), entry];
    return entry;
  }

  private _remove(entry: IEntry): void {
    this._entries = this._entries.filter(one => one !== entry);
    this._save();
    this._emit();
  }

  private _saveSoon(): void {
    if (!this._saving) {
      this._saving = true;
      this.place.later(() => {
        this._saving = false;
        this._save();
      }, SAVE_MS);
    }
  }

  private _save(): void {
    const kept = this._entries.flatMap(entry => (entry.kept && entry.kept.hashes.some(Boolean) ? [entry.kept] : []));
    this.place.save(kept.slice(-MAX_KEPT));
  }

  private async _load(): Promise<void> {
    for (const kept of await this.place.load()) {
      if (!this._find(kept.volume, kept.path)) {
        const sent = kept.hashes.reduce((sum, hash, index) => sum + (hash ? Math.min(PIECE_BYTES, kept.size - index * PIECE_BYTES) : 0), 0);
        this._put({ ...kept, sent, state: 'stopped', resumable: true, kept, stop: new AbortController() });
      }
    }
    this._emit();
  }

  private _emit(): void {
    this._changed.emit();
  }

  private _changed = new Signal<this, void>(this);
  private _entries: IEntry[] = [];
  private _saving = false;
}

/** What was kept, as far as it is of the shape that is kept now. */
export function keptUploads(value: unknown): IKeptUpload[] {
  const list = Array.isArray(value) ? value : [];
  return list.filter(
    one =>
      typeof one?.volume === 'string' && typeof one.path === 'string' && Number.isInteger(one.size) && typeof one.lastModified === 'number' &&
      Array.isArray(one.hashes) && one.hashes.every((hash: unknown) => typeof hash === 'string')
  );
}
