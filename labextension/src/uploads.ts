/** All uploads of this window: they go on while their folder is not shown, and after a reload where they were. */

import { ISignal, Signal } from '@lumino/signaling';
import type { IServerFile } from './drops';
import { language } from './language';
import { Chunk, NewFile } from './protocol';
import { IPieces, ISender, ISource, PIECE_BYTES, fileSource, sendFile } from './upload';

const KEY = '@cellburst/labextension:uploads';
const SAVE_MS = 1000; // what was sent in the last second before a reload is sent once more
const MAX_KEPT_PIECES = 4000; // of one file, 32 GB: 300 KB in the workspace. What lies beyond is sent again
const MAX_KEPT = 20;
const MAX_KEPT_WAITING = 1000; // of the Jupyter server's files that had not begun: of more, the rest is to be dragged in again

/** An upload as it is kept: `hashes` are of the pieces that are there, "" of one that is not; `origin` is the Jupyter server's path of
 *  a file that comes from there. */
export interface IKeptUpload {
  volume: string;
  path: string;
  size: number;
  lastModified: number;
  hashes: string[];
  origin?: string;
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
  /** The Jupyter server's path of a file that comes from there: it goes on by itself. "" of one that has to be picked again. */
  origin: string;
}

/** What it needs of the server, of JupyterLab and of the person. */
export interface IUploadPlace {
  sender(volume: string): ISender;
  missing(volume: string, hashes: string[]): Promise<string[]>;
  /** Commits a file; false when the person does not want what is there to be replaced. */
  publish(volume: string, file: NewFile): Promise<boolean>;
  /** A file of the Jupyter server as it is now. Rejects where it is gone. */
  serverFile(path: string): Promise<IServerFile>;
  /** When the gateway can be asked. */
  ready(): Promise<void>;
  load(): Promise<IKeptUpload[]>;
  save(kept: IKeptUpload[]): void;
  later(action: () => void, milliseconds: number): number;
  words(error: unknown): string;
}

interface IEntry extends ITransfer {
  kept: IKeptUpload;
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
    const entries = files.map(({ path, file }) => ({ file, entry: this._new(volume, path, file.size, file.lastModified ?? 0, '') }));
    this._emit();
    for (const { file, entry } of entries) {
      await this._run(entry, async () => fileSource(file), async () => true, done);
    }
  }

  /** Upload files of the Jupyter server in the same way. */
  async addServerFiles(volume: string, files: { path: string; file: IServerFile }[], done: () => void): Promise<void> {
    const entries = files.map(({ path, file }) => ({ file, entry: this._new(volume, path, file.size, file.lastModified, file.origin) }));
    this._save();
    this._emit();
    for (const { file, entry } of entries) {
      await this._runServerFile(entry, file, done);
    }
  }

  /** Go on with an upload of the Jupyter server's file that failed. */
  async goOn(transfer: ITransfer): Promise<void> {
    const old = this._find(transfer.volume, transfer.path);
    if (old) {
      const entry = this._new(old.volume, old.path, old.size, old.kept.lastModified, old.origin);
      this._emit();
      await this._again(entry);
    }
  }

  /** End an upload, or take away what is said of one. */
  forget(transfer: ITransfer): void {
    const entry = this._find(transfer.volume, transfer.path);
    entry?.stop.abort();
    this._entries = this._entries.filter(one => one !== entry);
    this._save();
    this._emit();
  }

  /** An upload that waits for its turn, with the pieces that are there of one before, where that was of the same content. */
  private _new(volume: string, path: string, size: number, lastModified: number, origin: string): IEntry {
    const old = this._find(volume, path);
    old?.stop.abort();
    const same = old && old.size === size && old.kept.lastModified === lastModified && old.origin === origin ? old.kept : null;
    const kept = same ?? { volume, path, size, lastModified, hashes: [], ...(origin ? { origin } : {}) };
    return this._put({ volume, path, size, sent: 0, state: 'waiting', origin, kept, stop: new AbortController() });
  }

  private _runServerFile(entry: IEntry, file: IServerFile, done: () => void): Promise<void> {
    return this._run(entry, first => file.open(entry.stop.signal, first), () => file.unchanged(), done);
  }

  /** Look at the Jupyter server's file as it is now, and upload what of it is not there yet. */
  private async _again(entry: IEntry): Promise<void> {
    let file: IServerFile;
    try {
      file = await this.place.serverFile(entry.origin);
    } catch (error) {
      this._failed(entry, error);
      return;
    }
    if (!entry.stop.signal.aborted) {
      await this._runServerFile(this._new(entry.volume, entry.path, file.size, file.lastModified, entry.origin), file, () => undefined);
    }
  }

  private _failed(entry: IEntry, error: unknown): void {
    if (!entry.stop.signal.aborted) {
      entry.state = 'failed';
      entry.error = this.place.words(error);
      this._save();
      this._emit();
    }
  }

  private async _run(entry: IEntry, open: (first: number) => Promise<ISource>, unchanged: () => Promise<boolean>, done: () => void): Promise<void> {
    if (entry.stop.signal.aborted) {
      return;
    }
    try {
      entry.state = 'running';
      const known = await this._known(entry.kept);
      entry.sent = known.reduce((sum, chunk) => sum + (chunk?.[1] ?? 0), 0);
      this._emit();
      const first = known.findIndex(chunk => !chunk);
      const source = await open(first < 0 ? known.length : first);
      const sent = await sendFile(source, entry.path, this.place.sender(entry.volume), entry.stop.signal, (bytes, chunks) => {
        entry.sent = bytes;
        // Of a stream that skips, places may be empty.
        entry.kept.hashes = Array.from(chunks.slice(0, MAX_KEPT_PIECES), chunk => chunk?.[0] ?? '');
        this._saveSoon();
        this._emit();
      }, known);
      if (entry.stop.signal.aborted) {
        return;
      }
      if (!(await unchanged())) {
        entry.kept.hashes = [];
        throw new Error(language.trans.__('%1 changed while it was read', entry.path));
      }
      const published = await this.place.publish(entry.volume, sent);
      this._remove(entry);
      if (published) {
        done();
      }
    } catch (error) {
      this._failed(entry, error);
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
    const begun = this._entries.filter(entry => entry.kept.hashes.some(Boolean)).slice(-MAX_KEPT);
    const waiting = this._entries.filter(entry => entry.origin && entry.state !== 'failed' && !entry.kept.hashes.some(Boolean)).slice(0, MAX_KEPT_WAITING);
    this.place.save([...begun, ...waiting].map(entry => entry.kept));
  }

  private async _load(): Promise<void> {
    const again: IEntry[] = [];
    for (const kept of await this.place.load()) {
      if (!this._find(kept.volume, kept.path)) {
        const { volume, path, size, origin = '' } = kept;
        const sent = kept.hashes.reduce((sum, hash, index) => sum + (hash ? Math.min(PIECE_BYTES, size - index * PIECE_BYTES) : 0), 0);
        const entry = this._put({ volume, path, size, sent, state: origin ? 'waiting' : 'stopped', origin, kept, stop: new AbortController() });
        if (origin) {
          again.push(entry);
        }
      }
    }
    this._emit();
    if (again.length) {
      await this.place.ready();
    }
    for (const entry of again) {
      await this._again(entry);
    }
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
      typeof one?.volume === 'string' && ['string', 'undefined'].includes(typeof one.origin) && typeof one.path === 'string' && Number.isInteger(one.size) && typeof one.lastModified === 'number' &&
      Array.isArray(one.hashes) && one.hashes.every((hash: unknown) => typeof hash === 'string')
  );
}
