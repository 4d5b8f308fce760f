/** Executed notebooks of runs as a drive that can be read only: `cellburst-runs:RUN/NAME.ipynb` opens like any notebook and touches no
 *  file. A run that goes on is shown as it is now; "Reload Notebook from Disk" asks again. */

import { Contents, ServerConnection } from '@jupyterlab/services';
import { ISignal, Signal } from '@lumino/signaling';
import { Api } from './api';
import { RunRow } from './protocol';
import { fileName } from './words';

const NAME = 'cellburst-runs';

/** Where a run's notebook is opened from. The name is the schedule's notebook and the time, so that tabs can be told apart. */
export function runPath(run: RunRow, notebook: string): string {
  const book = fileName(notebook).replace(/\.ipynb$/, '').replace(/[:\\]/g, '-');
  const due = new Date(run.instant_unix_seconds * 1000);
  const two = (value: number): string => String(value).padStart(2, '0');
  const day = `${due.getFullYear()}-${two(due.getMonth() + 1)}-${two(due.getDate())}`;
  return `${NAME}:${run.id}/${book} ${day} ${two(due.getHours())}.${two(due.getMinutes())}.ipynb`;
}

/** The run of a path of this drive, "" for its root. */
export function runOf(localPath: string): string {
  return localPath.replace(/^\/+/, '').split('/')[0];
}

export class RunsDrive implements Contents.IDrive {
  constructor(private api: Api) {}

  readonly name = NAME;

  get serverSettings(): ServerConnection.ISettings {
    return this.api.settings;
  }

  get fileChanged(): ISignal<this, Contents.IChangedArgs> {
    return this._fileChanged;
  }

  get isDisposed(): boolean {
    return this._disposed;
  }

  dispose(): void {
    this._disposed = true;
    Signal.clearData(this);
  }

  async get(localPath: string, options?: Contents.IFetchOptions): Promise<Contents.IModel> {
    const run = runOf(localPath);
    const model = {
      name: fileName(localPath), path: localPath, created: '', last_modified: '', writable: false, mimetype: '', chunks: undefined
    };
    if (!run || !localPath.endsWith('.ipynb')) {
      return { ...model, type: 'directory', format: 'json', content: [] };
    }
    // Without its content nothing is asked: whether there is one is told when it is.
    const content = options?.content === false ? null : await this.api.runNotebook(run);
    return { ...model, type: 'notebook', format: content ? 'json' : null, content };
  }

  async getDownloadUrl(localPath: string): Promise<string> {
    return this.api.runNotebookUrl(runOf(localPath));
  }

  async listCheckpoints(): Promise<Contents.ICheckpointModel[]> {
    return [];
  }

  newUntitled = refused;
  delete = refused;
  rename = refused;
  save = refused;
  copy = refused;
  createCheckpoint = refused;
  restoreCheckpoint = refused;
  deleteCheckpoint = refused;

  private _fileChanged = new Signal<this, Contents.IChangedArgs>(this);
  private _disposed = false;
}

async function refused(): Promise<never> {
  throw new Error('What a run wrote can be read only. Download it, and open that.');
}
