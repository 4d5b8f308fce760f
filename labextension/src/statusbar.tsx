/** One line in the status bar: the GPUs in use and what they cost; pressing it opens the panel. */

import { ReactWidget } from '@jupyterlab/apputils';
import { TranslationBundle } from '@jupyterlab/translation';
import { ReactWidget as Base } from '@jupyterlab/ui-components';
import * as React from 'react';
import { gpuIcon } from './icons';
import { LiveModel } from './live';
import { rateText } from './money';
import { rateNow } from './now';
import { gpuText } from './words';

export class StatusItem extends ReactWidget implements Base {
  constructor(private trans: TranslationBundle, private live: LiveModel, private onOpen: () => void) {
    super();
    live.changed.connect(this.update, this);
  }

  /** Whether there is anything to say: something runs. */
  get active(): boolean {
    return this.live.connection === 'live' && this.words !== '';
  }

  dispose(): void {
    this.live.changed.disconnect(this.update, this);
    super.dispose();
  }

  private get words(): string {
    const status = this.live.status;
    const running = (status?.sessions ?? []).filter(session => session.container);
    if (!status || running.length === 0) {
      return '';
    }
    const counts = new Map<string, number>();
    for (const session of running) {
      const name = gpuText(session.container?.gpus) || 'CPU';
      counts.set(name, (counts.get(name) ?? 0) + 1);
    }
    const what = [...counts].map(([name, count]) => (count > 1 ? `${count} × ${name}` : name)).join(', ');
    return `${what} · ${rateText(rateNow(status))}`;
  }

  protected render(): JSX.Element {
    const words = this.words;
    return (
      <button className="cb-status-item" title={this.trans.__('Open the Cellburst panel')} onClick={this.onOpen} aria-label={this.trans.__('Cellburst: %1', words)}>
        <gpuIcon.react tag="span" aria-hidden="true" />
        <span>{words}</span>
      </button>
    );
  }
}
