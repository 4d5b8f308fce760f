/** The panel in the left sidebar. */

import { ReactWidget } from '@jupyterlab/apputils';
import * as React from 'react';
import { Cost } from './cost';
import { gpuIcon } from './icons';
import { Machines } from './machines';
import { Now } from './now';
import { Schedules } from './schedules';
import { Secrets } from './secrets';
import { ITools, Tools, useLive, useTools } from './tools';
import { Volumes } from './volumes';

export class Panel extends ReactWidget {
  constructor(private tools: ITools) {
    super();
    this.id = 'cellburst-panel';
    this.addClass('cb-panel');
    this.title.icon = gpuIcon;
    this.title.caption = tools.trans.__('Cellburst: GPUs, cost, volumes, secrets, schedules');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', 'Cellburst');
  }

  protected render(): JSX.Element {
    return (
      <Tools.Provider value={this.tools}>
        <Sections />
      </Tools.Provider>
    );
  }

  /** The first time that it is seen, a gateway is started if there is none. */
  protected onAfterShow(): void {
    if (!this.seen) {
      this.seen = true;
      this.tools.live.start();
    }
  }

  private seen = false;
}

function Sections(): JSX.Element {
  const { folds } = useTools();
  const live = useLive();
  const [, again] = React.useReducer((count: number) => count + 1, 0);
  React.useEffect(() => {
    const slot = (): void => again();
    folds.changed.connect(slot);
    return () => {
      folds.changed.disconnect(slot);
    };
  }, [folds]);
  const status = live.status;
  return (
    <>
      <Banner />
      <Now status={status} open={folds.isOpen('now', true)} />
      <Machines status={status} open={folds.isOpen('machines', true)} />
      <Volumes status={status} open={folds.isOpen('volumes', false)} />
      <Secrets status={status} open={folds.isOpen('secrets', false)} />
      <Schedules status={status} open={folds.isOpen('schedules', false)} />
      <Cost status={status} open={folds.isOpen('cost', false)} />
    </>
  );
}

/** What is wrong with the connection, and what to do. Nothing while all is well. */
export function Banner(): JSX.Element | null {
  const { trans, api } = useTools();
  const live = useLive();
  if (live.connection === 'live') {
    return null;
  }
  if (live.connection === 'logged-out') {
    return (
      <div className="cb-banner" role="alert">
        <b>{trans.__('You are logged out of Jupyter')}</b>
        <div>{trans.__('What is shown is of before. Log in again; this page goes on by itself then.')}</div>
        <a className="cb-login" href={api.loginUrl} target="_blank" rel="noopener">
          {trans.__('Log in again')}
        </a>
      </div>
    );
  }
  if (live.connection === 'disconnected') {
    return (
      <div className="cb-banner" role="alert">
        <b>{trans.__('The Jupyter server does not answer')}</b>
        <div>{trans.__('What is shown is of before. It is tried again by itself; if it was stopped, start it again.')}</div>
      </div>
    );
  }
  if (live.connection === 'waiting' || live.starting) {
    return (
      <div className="cb-banner" role="status">
        {live.starting ? trans.__('Starting the gateway…') : trans.__('Connecting…')}
      </div>
    );
  }
  return (
    <div className="cb-banner" role="alert">
      <b>{live.status ? trans.__('The gateway is gone') : trans.__('No gateway is running')}</b>
      {live.error && live.error.code !== 'platform.gateway_down' && <div className="cb-dim">{live.error.message}</div>}
      {live.error?.code === 'platform.gateway_down' && live.error.message !== 'no gateway is running' && (
        <div className="cb-dim cb-words">{live.error.message}</div>
      )}
      <div>{live.status ? trans.__('What is shown is of before.') : trans.__('It runs on this machine and starts in a moment.')}</div>
      <button className="jp-Button jp-mod-styled jp-mod-accept" onClick={() => live.start()}>
        {trans.__('Start')}
      </button>
    </div>
  );
}
