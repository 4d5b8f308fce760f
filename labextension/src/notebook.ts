/** The notebook in front. "Use in this notebook" is kept in its own metadata, which `%%modal` reads:
 *
 *  `cellburst: {"volumes": {"/data": "NAME"}, "secrets": ["NAME"]}`
 *
 *  Its active cell is what "Run on" writes into.
 */

import { JupyterFrontEnd } from '@jupyterlab/application';
import { Widget } from '@lumino/widgets';

const KEY = 'cellburst';
const SHARED_DRIVE = 'RTC'; // the server's files, where several people edit them together

export interface IUsed {
  volumes?: Record<string, string>;
  secrets?: string[];
}

/** The part of a notebook's document that is used. Its package is not needed for more. */
interface IBook {
  context: {
    path: string;
    contentsModel?: { writable: boolean } | null;
    model: { dirty: boolean; getMetadata(key: string): any; setMetadata(key: string, value: any): void; deleteMetadata(key: string): void };
    save(): Promise<void>;
  };
  content?: { activeCell?: { node: HTMLElement; model: { type: string; sharedModel: { getSource(): string; setSource(text: string): void } } } | null };
}

/** A code cell that can be written into. */
export interface ICell {
  node: HTMLElement;
  source: string;
  write(source: string): void;
}

export class CurrentNotebook {
  constructor(private app: JupyterFrontEnd) {}

  /** The path of the notebook in front, "" where none is, or one of another drive than the server's files (a run's, a bucket's). */
  get path(): string {
    const path = this.book()?.context.path ?? '';
    const contents = this.app.serviceManager.contents;
    return ['', SHARED_DRIVE].includes(contents.driveName(path)) ? contents.localPath(path) : '';
  }

  /** The active cell of the notebook in front, null where it is none of code. */
  get cell(): ICell | null {
    const book = this.book();
    const cell = book?.content?.activeCell;
    if (!cell || cell.model.type !== 'code' || book?.context.contentsModel?.writable === false) {
      return null;
    }
    const shared = cell.model.sharedModel;
    return { node: cell.node, source: shared.getSource(), write: source => shared.setSource(source) };
  }

  /** Save the notebook in front, if it is that one and has changes. */
  async save(path: string): Promise<void> {
    const context = this.book()?.context;
    if (context && this.path === path && context.model.dirty) {
      await context.save();
    }
  }

  /** What the notebook in front uses. */
  get used(): IUsed {
    return this.book()?.context.model.getMetadata(KEY) ?? {};
  }

  /** Change what it uses; an empty rest is taken away. */
  change(change: (used: IUsed) => IUsed): void {
    const model = this.book()?.context.model;
    if (!model) {
      return;
    }
    const used = change(JSON.parse(JSON.stringify(this.used)));
    if (Object.keys(used.volumes ?? {}).length === 0) {
      delete used.volumes;
    }
    if ((used.secrets ?? []).length === 0) {
      delete used.secrets;
    }
    if (Object.keys(used).length === 0) {
      model.deleteMetadata(KEY);
    } else {
      model.setMetadata(KEY, used);
    }
    // The kernel reads it from the file: so it also holds where no front end of ours is.
    void this.book()?.context.save();
  }

  private book(): IBook | null {
    for (const widget of this.app.shell.widgets('main')) {
      if (widget.isVisible && isBook(widget)) {
        return widget as unknown as IBook;
      }
    }
    return null;
  }
}

function isBook(widget: Widget): boolean {
  const context = (widget as unknown as Partial<IBook>).context;
  return !!context?.path?.endsWith('.ipynb') && typeof context.model?.setMetadata === 'function';
}
