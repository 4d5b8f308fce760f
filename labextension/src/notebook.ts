/** "Use in this notebook": kept in the notebook's own metadata, which `%%modal` reads.
 *
 *  `cellburst: {"volumes": {"/data": "NAME"}, "secrets": ["NAME"]}`
 */

import { JupyterFrontEnd } from '@jupyterlab/application';
import { Widget } from '@lumino/widgets';

const KEY = 'cellburst';

export interface IUsed {
  volumes?: Record<string, string>;
  secrets?: string[];
}

/** The part of a notebook's document that is used. Its package is not needed for more. */
interface IBook {
  context: { path: string; model: { getMetadata(key: string): any; setMetadata(key: string, value: any): void; deleteMetadata(key: string): void }; save(): Promise<void> };
}

export class CurrentNotebook {
  constructor(private app: JupyterFrontEnd) {}

  /** The path of the notebook in front, "" where none is. */
  get path(): string {
    return this.book()?.context.path ?? '';
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
