/** Opens the form of a schedule: from a notebook, from a file in the browser, from the panel. One tab for each of them. */

import { JupyterFrontEnd } from '@jupyterlab/application';
import { TranslationBundle } from '@jupyterlab/translation';
import { ISignal, Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';
import { scheduleIcon } from './icons';
import { CurrentNotebook } from './notebook';
import { RunRow } from './protocol';
import { runPath } from './runs_drive';
import { scheduleTab, Target } from './schedule_form';
import { ITools } from './tools';

export const SCHEDULE = 'cellburst:schedule';
export const SCHEDULE_FILE = 'cellburst:schedule-file';

export class Forms {
  constructor(private app: JupyterFrontEnd, private notebook: CurrentNotebook) {}

  /** Set right after it is made: what the form is given holds this too. */
  tools!: ITools;

  /** Something was saved. */
  get saved(): ISignal<this, void> {
    return this._saved;
  }

  /** Schedule a notebook of this Jupyter server, as it is saved; the one in front is saved before. */
  async create(path: string): Promise<void> {
    await this.notebook.save(path);
    this._open(`path:${path}`, { path });
  }

  /** Change a schedule. */
  edit(schedule: string, name: string): void {
    this._open(`schedule:${schedule}`, { schedule, name });
  }

  /** Something else than the form changed a schedule. */
  changed(): void {
    this._saved.emit();
  }

  /** Open the notebook that a run wrote, to be read; no kernel is started for it. */
  openRun(run: RunRow, notebook: string): void {
    void this.app.commands.execute('docmanager:open', {
      path: runPath(run, notebook), factory: 'Notebook',
      kernelPreference: { shouldStart: false, canStart: false, autoStartDefault: false }
    });
  }

  private _open(key: string, target: Target): void {
    const open = this._tabs.get(key);
    if (open && !open.isDisposed) {
      this.app.shell.activateById(open.id);
      return;
    }
    const tab = scheduleTab(this.tools, target, () => this._saved.emit());
    tab.id = `cellburst-schedule-${++this._count}`;
    this._tabs.set(key, tab);
    tab.disposed.connect(() => this._tabs.delete(key));
    this.app.shell.add(tab, 'main', { type: 'Cellburst' });
    this.app.shell.activateById(tab.id);
  }

  private _saved = new Signal<this, void>(this);
  private _tabs = new Map<string, Widget>();
  private _count = 0;
}

/** The commands of the notebook's toolbar, the palette and the file browser's menu. */
export function addSchedule(app: JupyterFrontEnd, trans: TranslationBundle, forms: Forms, notebook: CurrentNotebook): void {
  app.commands.addCommand(SCHEDULE, {
    label: args => (args['isPalette'] ? trans.__('Schedule This Notebook…') : trans.__('Schedule…')),
    caption: trans.__('Run this notebook by itself, at times of your choice'),
    icon: args => (args['isPalette'] ? undefined : scheduleIcon),
    isEnabled: args => !!args['path'] || notebook.path !== '',
    describedBy: { args: { type: 'object', properties: { path: { type: 'string', description: 'The notebook; without it the one in front' } } } },
    execute: args => forms.create((args['path'] as string) || notebook.path)
  });
  app.commands.addCommand(SCHEDULE_FILE, {
    label: trans.__('Schedule…'),
    caption: trans.__('Run this notebook by itself, at times of your choice'),
    icon: scheduleIcon,
    isEnabled: () => chosen(app) !== '',
    describedBy: { args: { type: 'object', properties: {} } },
    execute: () => forms.create(chosen(app))
  });
}

interface IBrowser {
  selectedItems(): Iterable<{ path: string; type: string }>;
}

/** The notebook that is chosen in the file browser, "" for none. Its package is not needed for more. */
function chosen(app: JupyterFrontEnd): string {
  for (const area of ['left', 'right', 'main']) {
    for (const widget of app.shell.widgets(area)) {
      const browser = widget as unknown as Partial<IBrowser>;
      if (widget.isVisible && typeof browser.selectedItems === 'function') {
        for (const item of browser.selectedItems()) {
          return item.type === 'notebook' && !item.path.includes(':') ? item.path : '';
        }
      }
    }
  }
  return '';
}
