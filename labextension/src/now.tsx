/** "Now": what runs and what is parked, with what it uses and costs. */

import { closeIcon, listIcon, runIcon, stopIcon } from '@jupyterlab/ui-components';
import * as React from 'react';
import { confirm, showLogs, tried } from './dialogs';
import { parkIcon } from './icons';
import { parseUsd, rateText, sumUsd, usdText } from './money';
import { Absent, Action, Meter, Note, RowList, Section, Simulated } from './parts';
import { SessionRow, Status } from './protocol';
import { toast } from './toasts';
import { ITools, useTools } from './tools';
import { ageText, gibText, gpuText, isSimulated, mean, sessionTitle, sharesText, sizeText } from './words';

const ROW_HEIGHT = 92;

/** The price per second of all that runs. */
export function rateNow(status: Status): bigint {
  return sumUsd((status.sessions ?? []).map(session => session.container?.usd_per_second));
}

export function Now(props: { status: Status | null; open: boolean }): JSX.Element {
  const { trans } = useTools();
  const sessions = [...(props.status?.sessions ?? [])].sort(byImportance);
  const running = sessions.filter(session => session.container).length;
  const parked = sessions.filter(session => session.parked && !session.container).length;
  const words = [
    running ? trans._n('%1 running', '%1 running', running) : '',
    parked ? trans._n('%1 parked', '%1 parked', parked) : '',
    running && props.status ? rateText(rateNow(props.status)) : ''
  ].filter(Boolean);
  return (
    <Section id="now" title={trans.__('Now')} note={words.join(' · ')} open={props.open}>
      <div className="cb-spoken" role="status" aria-live="polite">
        {words.join(', ')}
      </div>
      {!props.status ? (
        <Absent />
      ) : sessions.length === 0 ? (
        <Note>
          {trans.__('Nothing runs and nothing costs. Start a cell with')} <code>%%modal gpu=any</code>
        </Note>
      ) : (
        <RowList label={trans.__('Sessions')} rows={sessions} rowHeight={ROW_HEIGHT} rowKey={session => session.id}>
          {session => <Session session={session} />}
        </RowList>
      )}
      {props.status && <Warm status={props.status} />}
    </Section>
  );
}

function Session({ session }: { session: SessionRow }): JSX.Element {
  const tools = useTools();
  const { trans, api, openPath } = tools;
  const { container, parked, usage } = session;
  const gpus = container?.gpus;
  const title = sessionTitle(session);
  const asleep = !!parked && !container;
  const [busy, setBusy] = React.useState(false);
  const act = async (words: string, action: () => Promise<unknown>): Promise<void> => {
    setBusy(true);
    await tried(words, action);
    setBusy(false);
  };
  return (
    <>
      <div className="cb-line">
        <span className={`cb-dot cb-dot-${session.state}`} aria-hidden="true" />
        <button className="cb-name" title={session.notebook} onClick={() => openPath(session.notebook)}>
          {title}
        </button>
        <span className="cb-actions">
          <Action icon={listIcon} label={trans.__('Show what %1 printed', title)} onClick={() => void showLogs(tools, session.id, title)} />
          {session.state === 'idle' && (
            <Action
              icon={parkIcon} label={trans.__('Park %1: it costs nothing until its next cell', title)} disabled={busy}
              onClick={() => void act(trans.__('%1 could not be parked', title), () => api.park(session.id))}
            />
          )}
          {asleep && (
            <Action
              icon={runIcon} label={trans.__('Resume %1: it costs again', title)} disabled={busy}
              onClick={() => void act(trans.__('%1 could not be resumed', title), () => wake(tools, session, title))}
            />
          )}
          <Action
            icon={asleep ? closeIcon : stopIcon} label={asleep ? trans.__('End %1', title) : trans.__('Stop %1', title)} disabled={busy}
            onClick={async () => {
              if (await confirmStop(tools, session, title)) {
                await act(trans.__('%1 could not be stopped', title), () => api.stop(session.id));
              }
            }}
          />
        </span>
      </div>
      <div className="cb-line cb-dim">
        <span className="cb-text" title={container ? sharesText(container) : undefined}>
          {container
            ? `${gpuText(gpus) || trans.__('no GPU')} · ${ageText(container.uptime_seconds ?? 0)}`
            : asleep
              ? `${sizeText(parked?.size_bytes ?? 0)} · ${keptText(tools, session)}`
              : stateText(tools, session.state)}
        </span>
        {isSimulated(gpus) && <Simulated />}
      </div>
      <div className="cb-line cb-dim">
        <span className="cb-state">{stateText(tools, session.state)}</span>
        {container && (
          <span className="cb-money">
            {trans.__('%1 at %2', usdText(parseUsd(session.cost_usd)), rateText(parseUsd(container.usd_per_second)))}
          </span>
        )}
        {asleep && <span className="cb-money">{trans.__('resumes at its next cell')}</span>}
      </div>
      {container && usage && <Usage session={session} />}
    </>
  );
}

function Usage({ session }: { session: SessionRow }): JSX.Element {
  const { trans } = useTools();
  const usage = session.usage!;
  const gpu = mean((usage.gpus ?? []).filter(one => !one.simulated).map(one => one.utilization_ratio));
  const cores = session.container?.cpu || 1;
  return (
    <div className="cb-meters">
      {gpu !== null ? (
        <Meter label={trans.__('GPU')} ratio={gpu} text={`${Math.round(gpu * 100)} %`} />
      ) : (
        <Meter
          label={trans.__('CPU')} ratio={(usage.cpu_cores ?? 0) / cores}
          text={usage.cpu_cores === null || usage.cpu_cores === undefined ? '?' : `${usage.cpu_cores.toFixed(1)}`}
        />
      )}
      <Meter
        label={trans.__('Memory')}
        ratio={usage.memory_limit_bytes ? (usage.memory_bytes ?? 0) / usage.memory_limit_bytes : 0}
        text={gibText((usage.memory_bytes ?? 0) / 1048576)}
      />
    </div>
  );
}

function Warm({ status }: { status: Status }): JSX.Element | null {
  const { trans } = useTools();
  const warm = (status.workers ?? []).flatMap(worker => worker.snapshots?.warm ?? []);
  if (warm.length === 0) {
    return null;
  }
  const memory = gibText(warm.reduce((sum, one) => sum + (one.memory_mib ?? 0), 0));
  return <Note>{trans._n('%1 container waits warm: %2 of memory, billed to nobody', '%1 containers wait warm: %2 of memory, billed to nobody', warm.length, memory)}</Note>;
}

/** Bring a parked session back by its notebook's kernel; without one, open the notebook and say what to do. */
async function wake({ trans, openPath, resume }: ITools, session: SessionRow, title: string): Promise<void> {
  if (!(await resume(session.notebook, session.name))) {
    openPath(session.notebook);
    toast(title, trans.__('No kernel of %1 runs. Run a cell of it: that brings the session back.', title), 'info', { autoClose: 15_000 });
  }
}

async function confirmStop(tools: ITools, session: SessionRow, title: string): Promise<boolean> {
  const { trans } = tools;
  const words = session.running_call
    ? trans.__('A cell runs in it. It ends, and the names there are gone.')
    : trans.__('The names there are gone.');
  return confirm(trans, trans.__('Stop %1?', title), words, trans.__('Stop'));
}

function keptText({ trans }: ITools, session: SessionRow): string {
  const until = session.parked?.expires_unix_seconds;
  const day = until ? new Date(until * 1000).toLocaleDateString(undefined, { day: 'numeric', month: 'short' }) : '';
  return day ? trans.__('kept until %1', day) : trans.__('parked');
}

function stateText({ trans }: ITools, state: SessionRow['state']): string {
  const words: Record<SessionRow['state'], string> = {
    starting: trans.__('starting'),
    idle: trans.__('idle'),
    busy: trans.__('running'),
    parking: trans.__('parking'),
    parked: trans.__('parked'),
    superseded: trans.__('its kernel was restarted'),
    ended: trans.__('ended')
  };
  return words[state];
}

const ORDER: SessionRow['state'][] = ['busy', 'starting', 'parking', 'idle', 'superseded', 'parked', 'ended'];

function byImportance(a: SessionRow, b: SessionRow): number {
  return ORDER.indexOf(a.state) - ORDER.indexOf(b.state) || (b.last_used_unix_seconds ?? 0) - (a.last_used_unix_seconds ?? 0);
}
