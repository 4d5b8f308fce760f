/** What is dropped on a folder of a volume: files and folders of the desktop, and of JupyterLab's own file browser. */

import { Contents, ServerConnection } from '@jupyterlab/services';
import { ISource, streamSource } from './upload';

/** The file browser's own kind of a drag: paths of the Jupyter server. */
export const CONTENTS_MIME = 'application/x-jupyter-icontents';
const MAX_FILES = 10_000; // of one drop: more are for `cellburst volume put`, which commits them together

export interface IDropped {
  /** Below the folder that it was dropped on. */
  path: string;
  file: File;
}

/** Files of the Jupyter server, opened one by one when their turn comes. */
export interface IServerFile {
  path: string;
  size: number;
  open(signal: AbortSignal): Promise<ISource>;
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
      found.push({ path, size: model.size ?? 0, open: signal => opened(contents, settings, model, signal) });
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

async function opened(contents: Contents.IManager, settings: ServerConnection.ISettings, model: Contents.IModel, signal: AbortSignal): Promise<ISource> {
  const url = await contents.getDownloadUrl(model.path);
  const answer = await ServerConnection.makeRequest(url, { signal, cache: 'no-store' }, settings);
  if (!answer.ok || !answer.body) {
    throw new ServerConnection.ResponseError(answer, `${model.path} cannot be read: status ${answer.status}`);
  }
  return streamSource(answer.body as ReadableStream<Uint8Array<ArrayBuffer>>, Date.parse(model.last_modified));
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
