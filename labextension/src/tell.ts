/** Says what has ended, and marks the panel's tab while something idle costs money. */

import { TranslationBundle } from '@jupyterlab/translation';
import { UUID } from '@lumino/coreutils';
import { Widget } from '@lumino/widgets';
import { Api, infoText } from './api';
import { LiveModel } from './live';
import { idleNow, IStorage, Shown, told } from './notices';
import { parseUsd, rateText, usdText } from './money';
import { EndedThing, Ends, RunRow } from './protocol';
import { toast } from './toasts';
import { ageText, fileName } from './words';

const KEY = '@cellburst/labextension:shown';
const ASK_MS = 10_000;

interface IGiven {
  trans: TranslationBundle;
  api: Api;
  live: LiveModel;
  /** Of this browser, for all its windows. */
  storage: IStorage | null;
  panel: Widget;
  openPath(path: string): void;
  openRun(run: RunRow): void;
  openPanel(): void;
  /** A run has begun or ended. */
  runsChanged(): void;
}

export class Teller {
  constructor(private given: IGiven) {
    this.usual = given.panel.title.caption;
    this.shown = new Shown(given.storage, `${KEY}:${given.api.settings.baseUrl}`);
  }

  /** Both can be switched off in the settings. Then no end is taken: another window tells it. */
  notifications = true;
  badge = true;

  start(): void {
    this.given.live.changed.connect(this.look, this);
    window.setInterval(() => void this.ask(), ASK_MS);
    this.look();
  }

  /** The figures changed. */
  look(): void {
    const { live } = this.given;
    this.mark();
    if (live.connection !== 'live') {
      return;
    }
    const { status } = live;
    // A run's session is over: its record says how it ended.
    const running = (status?.sessions ?? []).filter(one => one.notebook.startsWith('schedule:')).map(one => one.id).join();
    if (running !== this.running) {
      this.running = running;
      this.given.runsChanged();
    }
    const now = [running, status?.gateway_pid, ...(status?.ended ?? []).map(one => one.id)].join();
    if (now !== this.seen) {
      this.seen = now;
      void this.ask();
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

  /** Take what ended, show it, and say that it was shown: with the next question, which is asked at once. */
  private async ask(): Promise<void> {
    const { live, api } = this.given;
    if (document.hidden || live.connection !== 'live' || this.asking || !this.notifications) {
      return;
    }
    this.asking = true;
    try {
      for (let more = true; more; ) {
        const ids = this.shown.ids;
        const ends = await api.takeEnds({ window: this.window, shown: ids });
        this.shown.noted(ids);
        const fresh = { runs: this.shown.fresh(ends.runs ?? []), things: this.shown.fresh(ends.things ?? []) };
        this.tell(fresh);
        more = fresh.runs.length + fresh.things.length > 0;
      }
    } catch {
      // The banner of the panel says what is wrong with the connection.
    } finally {
      this.asking = false;
    }
  }

  private tell(ends: Ends): void {
    const { trans } = this.given;
    const { runs, things, more, failed } = told(ends);
    if (more) {
      const words = trans._n('%1 more has ended since you were last here', '%1 more runs, cells and builds have ended since you were last here', more);
      this.say(
        failed ? `${words}: ${trans._n('%1 failed', '%1 failed', failed)}` : words, failed ? 'error' : 'info',
        [{ label: trans.__('Open the panel'), callback: () => this.given.openPanel() }]
      );
    }
    things.forEach(thing => this.thing(thing));
    runs.forEach(run => this.run(run));
  }

  private run(run: RunRow): void {
    const { trans } = this.given;
    const cost = usdText(parseUsd(run.cost_usd));
    const actions = run.has_notebook ? [{ label: trans.__('Open it'), callback: () => this.given.openRun(run) }] : [];
    if (run.state === 'succeeded') {
      this.say(trans.__('The scheduled run of %1 has succeeded, for %2', run.name, cost), 'success', actions);
    } else {
      const why = run.error ? `: ${infoText(run.error)}` : '';
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
    toast(this.given.trans.__('What has ended'), words, type, { autoClose: type === 'error' ? false : 15_000, actions });
  }

  private shown: Shown;
  private window = UUID.uuid4();
  private running = '';
  private seen: string | null = null;
  private asking = false;
  private usual: string;
}

function now(): number {
  return Date.now() / 1000;
}
