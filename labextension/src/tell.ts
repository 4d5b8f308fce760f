/** Says what has ended, and marks the panel's tab while something idle costs money. */

import { Notification } from '@jupyterlab/apputils';
import { IStateDB } from '@jupyterlab/statedb';
import { TranslationBundle } from '@jupyterlab/translation';
import { Widget } from '@lumino/widgets';
import { Api } from './api';
import { LiveModel } from './live';
import { idleNow, Told } from './notices';
import { parseUsd, rateText, usdText } from './money';
import { EndedThing, RunRow } from './protocol';
import { ageText, fileName } from './words';

const KEY = '@cellburst/labextension:told';
const RUNS_MS = 10_000;

interface IGiven {
  trans: TranslationBundle;
  api: Api;
  live: LiveModel;
  db: IStateDB | null;
  panel: Widget;
  openPath(path: string): void;
  openRun(run: RunRow): void;
  /** A run has begun or ended. */
  runsChanged(): void;
}

export class Teller {
  constructor(private given: IGiven) {
    this.usual = given.panel.title.caption;
  }

  /** Both can be switched off in the settings. */
  notifications = true;
  badge = true;

  /** Begin, where the last page ended. */
  async start(): Promise<void> {
    const kept = (await this.given.db?.fetch(KEY).catch(() => undefined)) as { since?: number } | undefined;
    this.told = new Told(kept?.since ?? now());
    this.given.live.changed.connect(this.look, this);
    window.setInterval(() => void this.runs(), RUNS_MS);
    this.look();
  }

  /** The figures changed. */
  look(): void {
    const { live } = this.given;
    this.mark();
    if (live.connection !== 'live' || !this.told) {
      return;
    }
    for (const thing of this.told.things(live.status, now())) {
      this.thing(thing);
    }
    // A run's session is over: its record says how it ended.
    const running = (live.status?.sessions ?? []).filter(one => one.notebook.startsWith('schedule:')).map(one => one.id).join();
    if (running !== this.running) {
      this.running = running;
      this.given.runsChanged();
      void this.runs();
    }
  }

  private mark(): void {
    const { live, panel, trans } = this.given;
    const idle = idleNow(live.connection === 'live' ? live.status : null, now());
    const shown = this.badge && idle.count > 0;
    const rate = rateText(idle.usdPerSecond);
    const caption = shown
      ? trans._n('Cellburst: %1 idle session costs %2', 'Cellburst: %1 idle sessions cost %2', idle.count, rate)
      : this.usual;
    if (panel.title.caption !== caption) {
      panel.title.caption = caption;
    }
    const name = shown ? 'cb-costs-idle' : '';
    if (panel.title.className !== name) {
      panel.title.className = name;
    }
  }

  private async runs(): Promise<void> {
    const { live, api } = this.given;
    if (!this.told || document.hidden || live.connection !== 'live' || this.asking) {
      return;
    }
    this.asking = true;
    try {
      const rows = (await api.allRuns(this.told.since - 1)).rows ?? [];
      this.told.runs(rows, now()).forEach(run => this.run(run));
      await this.given.db?.save(KEY, { since: this.told.mark });
    } catch {
      // The banner of the panel says what is wrong with the connection.
    } finally {
      this.asking = false;
    }
  }

  private run(run: RunRow): void {
    const { trans } = this.given;
    const cost = usdText(parseUsd(run.cost_usd));
    const actions = run.has_notebook ? [{ label: trans.__('Open it'), callback: () => this.given.openRun(run) }] : [];
    if (run.state === 'succeeded') {
      this.say(trans.__('The scheduled run of %1 has succeeded, for %2', run.name, cost), 'success', actions);
    } else {
      const why = run.error?.message ? `: ${run.error.message.slice(0, 300)}` : '';
      const words: Record<string, string> = {
        failed: trans.__('The scheduled run of %1 has failed', run.name), cancelled: trans.__('The scheduled run of %1 was cancelled', run.name),
        missed: trans.__('A scheduled run of %1 was missed', run.name), lost: trans.__('The scheduled run of %1 was lost', run.name)
      };
      this.say((words[run.state] ?? `${run.name}: ${run.state}`) + why, run.state === 'cancelled' ? 'info' : 'error', actions);
    }
  }

  private thing(thing: EndedThing): void {
    const { trans } = this.given;
    const took = ageText(thing.seconds ?? 0);
    if (thing.kind === 'build') {
      this.say(thing.problem ? trans.__('The build of an image has failed: %1', thing.problem) : trans.__('An image was built, in %1', took), thing.problem ? 'error' : 'success', []);
      return;
    }
    const book = fileName(thing.title) || thing.title;
    const actions = [{ label: trans.__('Open it'), callback: () => this.given.openPath(thing.title) }];
    this.say(
      thing.problem ? trans.__('The detached cell of %1 ended after %2: %3', book, took, thing.problem) : trans.__('The detached cell of %1 is done, after %2', book, took),
      thing.problem ? 'error' : 'success', actions
    );
  }

  private say(words: string, type: 'success' | 'error' | 'info', actions: { label: string; callback(): void }[]): void {
    if (this.notifications) {
      Notification.emit(words, type, { autoClose: type === 'error' ? false : 15_000, actions });
    }
  }

  private told: Told | null = null;
  private running = '';
  private asking = false;
  private usual: string;
}

function now(): number {
  return Date.now() / 1000;
}
