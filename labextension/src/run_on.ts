/** "Run on": a menu of the fleet's GPUs in the cell's toolbar, which writes the cell's `%%modal` line. */

import { JupyterFrontEnd } from '@jupyterlab/application';
import { TranslationBundle } from '@jupyterlab/translation';
import { MenuSvg } from '@jupyterlab/ui-components';
import { gpuIcon } from './icons';
import { LiveModel } from './live';
import { gpuOf, IKind, kinds, withGpu } from './magic_cell';
import { parseUsd, rateText } from './money';
import { CurrentNotebook } from './notebook';

export const RUN_ON = 'cellburst:run-on';
const CHOOSE = 'cellburst:run-on-choice';
const TOOLBAR_ITEM = '.jp-cell-toolbar [data-jp-item-name="cellburst-run-on"]';
const COUNTS = [1, 2, 4, 8];

/** What an entry of the menu writes (null: run here), and its words. */
export interface IEntry {
  gpu: string | null;
  words: string;
}

/** All entries: each kind once and, where a machine has several, in twos, fours and eights. */
export function entries(trans: TranslationBundle, found: IKind[]): IEntry[] {
  const made: IEntry[] = [];
  for (const kind of found) {
    for (const count of COUNTS.filter(number => number <= kind.most)) {
      const price = kind.usdPerSecond ? rateText(parseUsd(kind.usdPerSecond) * BigInt(count)) : trans.__('no price known');
      const free = kind.free >= count ? trans.__('%1 of %2 free', kind.free, kind.total) : trans.__('none free, waits');
      const simulated = kind.simulated ? ` · ${trans.__('SIMULATED')}` : '';
      made.push({ gpu: count > 1 ? `${kind.type}:${count}` : kind.type, words: `${count > 1 ? `${count} × ` : ''}${kind.type} · ${price} · ${free}${simulated}` });
    }
  }
  return made;
}

/** Adds the command that opens the menu, and the one of its entries. The panel's live figures must be on when it opens. */
export function addRunOn(app: JupyterFrontEnd, trans: TranslationBundle, live: LiveModel, notebook: CurrentNotebook): void {
  const { commands } = app;
  const write = (gpu: string | null): void => {
    const cell = notebook.cell;
    if (cell && gpuOf(cell.source) !== gpu) {
      cell.write(withGpu(cell.source, gpu));
    }
    cell?.node.querySelector<HTMLElement>('.cm-content')?.focus();
  };
  commands.addCommand(CHOOSE, {
    label: args => String(args['words']),
    isToggled: args => gpuOf(notebook.cell?.source ?? '') === args['gpu'],
    isToggleable: true,
    describedBy: {
      args: { type: 'object', properties: { gpu: { type: ['string', 'null'], description: 'What gpu= gets; "" for none, null for the kernel itself' }, words: { type: 'string' } } }
    },
    execute: args => write(args['gpu'] as string | null)
  });
  commands.addCommand(RUN_ON, {
    label: args => (args['isPalette'] ? trans.__('Run This Cell On…') : trans.__('Run on…')),
    caption: trans.__('Choose where this cell runs: writes its %1 line', '%%modal'),
    icon: args => (args['isPalette'] ? undefined : gpuIcon),
    isEnabled: () => notebook.cell !== null,
    describedBy: { args: { type: 'object', properties: {} } },
    execute: () => {
      const cell = notebook.cell;
      if (!cell) {
        return;
      }
      if (live.connection !== 'live') {
        live.start(); // the next time there is a fleet to choose from
      }
      const menu = new MenuSvg({ commands });
      menu.addClass('cb-run-on');
      menu.title.label = trans.__('Run on');
      const add = (entry: IEntry): unknown => menu.addItem({ command: CHOOSE, args: { gpu: entry.gpu, words: entry.words } });
      const found = entries(trans, kinds(live.status));
      add({ gpu: null, words: trans.__('Here: this notebook\'s kernel') });
      found.forEach(add);
      if (found.length > 1) {
        add({ gpu: 'any', words: trans.__('Any GPU that is free') });
      }
      add({ gpu: '', words: trans.__('A container without a GPU') });
      const asked = gpuOf(cell.source);
      if (asked && asked !== 'any' && !found.some(entry => entry.gpu === asked)) {
        add({ gpu: asked, words: trans.__('%1, as it is written', asked) });
      }
      menu.aboutToClose.connect(() => void Promise.resolve().then(() => menu.dispose()));
      const place = (cell.node.querySelector(TOOLBAR_ITEM) ?? cell.node).getBoundingClientRect();
      const below = cell.node.querySelector(TOOLBAR_ITEM) ? place.height : 0;
      // The palette gives the focus back to the cell when it closes, which is after this.
      window.setTimeout(() => {
        menu.open(place.left, place.top + below);
        menu.activeIndex = Math.max(0, menu.items.findIndex(item => item.isToggled));
      }, 0);
    }
  });
}
