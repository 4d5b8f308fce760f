/** Which sections are folded, kept over reloads. */

import { IStateDB } from '@jupyterlab/statedb';
import { ISignal, Signal } from '@lumino/signaling';

const KEY = '@cellburst/labextension:folds';

export class Folds {
  constructor(private db: IStateDB | null) {
    void this.load();
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  isOpen(section: string, usual: boolean): boolean {
    return this._open[section] ?? usual;
  }

  set(section: string, open: boolean): void {
    this._open = { ...this._open, [section]: open };
    void this.db?.save(KEY, this._open);
    this._changed.emit();
  }

  private async load(): Promise<void> {
    const kept = (await this.db?.fetch(KEY)) as Record<string, boolean> | undefined;
    if (kept) {
      this._open = { ...kept, ...this._open };
      this._changed.emit();
    }
  }

  private _changed = new Signal<this, void>(this);
  private _open: Record<string, boolean> = {};
}
