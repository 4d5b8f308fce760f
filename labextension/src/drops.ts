/** What is dropped on a folder of a volume: files and folders of the desktop, and of JupyterLab's own file browser. */

import { Contents, ServerConnection } from '@jupyterlab/services';
import { ISource, PIECE_BYTES, streamSource } from './upload';

/** The file browser's own kind of a drag: paths of the Jupyter server. */
export const CONTENTS_MIME = 'application/x-jupyter-icontents';
const MAX_FILES = 10_000; // of one drop: more are for `cellburst volume put`, which commits them together

export interface IDropped {
  /** Below the folder that it was dropped on. */
  path: string;
  file: File;
}

/** A file of the Jupyter server, opened when its turn comes. */
export interface IServerFile {
  /** Below the folder that it was dropped on. */
  path: string;
  /** The Jupyter server's path. */
  origin: string;
  size: number;
  lastModified: number;
  /** Its pieces from the one of number `first` on; or from the first one, where the server gives only whole files. */
  open(signal: AbortSignal, first: number): Promise<ISource>;
  /** Whether it is still as it was when it was found. */
  unchanged(): Promise<boolean>;
}

/** The part of a lumino drag event that is used. */
export interface ILabDrag extends Event {
  dropAction: string;
  proposedAction: string;
  mimeData: { hasData(mime: string): boolean; getData(mime: string): unknown };
}

/** All files of a drop from the desktop, those in folders with their paths. Must be called before the drop's handler returns. */
export async function droppedFiles(transfer: DataTransfer): Promise<IDropped[]> {
  const entries = [...transfer.items].map(item => item.webkitGetAsEntry?.() ?? null);
  if (!entries.some(entry => entry?.isDirectory)) {
    return [...transfer.files].map(file => ({ path: file.name, file }));
  }
  const found: IDropped[] = [];
  for (const entry of entries) {
    if (entry) {
      await walk(entry, entry.name, found);
    }
  }
  return found;
}

async function walk(entry: FileSystemEntry, path: string, found: IDropped[]): Promise<void> {
  if (found.length >= MAX_FILES) {
    throw new Error(`more than ${MAX_FILES} files at once; \`cellburst volume put\` takes more`);
  }
  if (entry.isFile) {
    const file = await new Promise<File>((take, fail) => (entry as FileSystemFileEntry).file(take, fail));
    found.push({ path, file });
    return;
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  for (;;) {
    // It gives at most a hundred at a time, and none at the end.
    const some = await new Promise<FileSystemEntry[]>((take, fail) => reader.readEntries(take, fail));
    if (!some.length) {
      return;
    }
    for (const one of some) {
      await walk(one, `${path}/${one.name}`, found);
    }
  }
}

/** The files behind paths of the file browser; those of folders are looked up. */
export async function serverFiles(contents: Contents.IManager, settings: ServerConnection.ISettings, paths: string[]): Promise<IServerFile[]> {
  const found: IServerFile[] = [];
  const add = async (model: Contents.IModel, path: string): Promise<void> => {
    if (model.type !== 'directory') {
      found.push(asFile(contents, settings, model, path));
      return;
    }
    const folder = await contents.get(model.path);
    for (const one of (folder.content ?? []) as Contents.IModel[]) {
      if (found.length >= MAX_FILES) {
        throw new Error(`more than ${MAX_FILES} files at once; \`cellburst volume put\` takes more`);
      }
      await add(one, `${path}/${one.name}`);
    }
  };
  for (const path of paths) {
    const model = await contents.get(path, { content: false });
    await add(model, model.name);
  }
  return found;
}

/** One by the Jupyter server's path, as it is now. Rejects where it is gone. */
export async function serverFile(contents: Contents.IManager, settings: ServerConnection.ISettings, path: string): Promise<IServerFile> {
  const model = await contents.get(path, { content: false });
  return asFile(contents, settings, model, model.name);
}

function asFile(contents: Contents.IManager, settings: ServerConnection.ISettings, model: Contents.IModel, path: string): IServerFile {
  const lastModified = Date.parse(model.last_modified);
  return {
    path, origin: model.path, size: model.size ?? 0, lastModified,
    open: (signal, first) => opened(contents, settings, model, signal, first),
    unchanged: async () => {
      const now = await contents.get(model.path, { content: false });
      return now.size === model.size && Date.parse(now.last_modified) === lastModified;
    }
  };
}

async function opened(contents: Contents.IManager, settings: ServerConnection.ISettings, model: Contents.IModel, signal: AbortSignal, first: number): Promise<ISource> {
  const lastModified = Date.parse(model.last_modified);
  if (typeof model.size === 'number' && first * PIECE_BYTES >= model.size) {
    return { lastModified, take: async () => null }; // all of it is there
  }
  const url = await contents.getDownloadUrl(model.path);
  const headers = first ? { Range: `bytes=${first * PIECE_BYTES}-` } : undefined;
  const answer = await ServerConnection.makeRequest(url, { signal, headers, cache: 'no-store' }, settings);
  if (!answer.ok || !answer.body) {
    throw new ServerConnection.ResponseError(answer, `${model.path} cannot be read: status ${answer.status}`);
  }
  return streamSource(answer.body as ReadableStream<Uint8Array<ArrayBuffer>>, lastModified, answer.status === 206 ? first : 0);
}

/** A drag of the file browser's that comes over the panel's tab shows the panel: both lie in the same sidebar. Returns what ends it. */
export function showOnDrag(panelId: string, show: () => void): () => void {
  const over = (event: Event): void => {
    const tab = event.target instanceof Element && event.target.closest(`.lm-TabBar-tab[data-id="${panelId}"]`);
    if (tab && (event as ILabDrag).mimeData?.hasData(CONTENTS_MIME)) {
      show();
    }
  };
  document.addEventListener('lm-dragenter', over);
  return () => document.removeEventListener('lm-dragenter', over);
}
