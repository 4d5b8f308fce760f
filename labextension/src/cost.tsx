/** "Cost": the month's budget, today and the last seven days by notebook and GPU, as bars with a table behind them, what idles, and
 *  what kept machines would cost. */

import { editIcon } from '@jupyterlab/ui-components';
import * as React from 'react';
import { askBudget, tried } from './dialogs';
import { parkIcon } from './icons';
import { rateText, parseUsd, shareOf, usdText } from './money';
import { Action, ListBody, Meter, Section } from './parts';
import { SessionRow, Spending, Status } from './protocol';
import { IBar, IKept, ISpent, neededSince, summary } from './spending';
import { rateNow } from './now';
import { useList, useTools } from './tools';
import { ageText, fileName, sessionTitle } from './words';

const SHOWN = 8;
const HOURS_PER_MONTH = 730n;

export function Cost(props: { status: Status | null; open: boolean }): JSX.Element {
  const { trans, api } = useTools();
  const list = useList(() => api.spending(neededSince(new Date())), props.open && !!props.status, [api]);
  const rate = props.status ? rateNow(props.status) : 0n;
  const idle = (props.status?.sessions ?? []).filter(session => session.state === 'idle' && session.container);
  const value = list.value;
  const spent = value ? summary(value.rows ?? [], value.reserved ?? [], new Date(), trans.__('no GPU')) : null;
  return (
    <Section id="cost" title={trans.__('Cost')} note={rate > 0n ? trans.__('%1 now', rateText(rate)) : ''} open={props.open}>
      {value && spent && <Budget spending={value} month={spent.month} rate={rate} refresh={list.refresh} />}
      <IdleNow sessions={idle} />
      <ListBody
        list={list} rows={value => value.rows ?? []}
        empty={trans.__('Nothing was spent in the last seven days. A cell shows its price before and while it runs.')}
      >
        {(_, value) => <Sums spending={value} spent={spent!} />}
      </ListBody>
    </Section>
  );
}

function Sums({ spending, spent }: { spending: Spending; spent: ISpent }): JSX.Element {
  const { trans } = useTools();
  return (
    <>
      <dl className="cb-sums">
        <div>
          <dt>{trans.__('Today')}</dt>
          <dd>{usdText(spent.today)}</dd>
        </div>
        <div>
          <dt>{trans.__('Seven days')}</dt>
          <dd>{usdText(spent.week)}</dd>
        </div>
        <div>
          <dt>{trans.__('Now')}</dt>
          <dd>{rateText(parseUsd(spending.usd_per_second))}</dd>
        </div>
      </dl>
      <Bars title={trans.__('By day')} bars={spent.days} />
      <Bars title={trans.__('By notebook')} bars={spent.notebooks} short={fileName} />
      <Bars title={trans.__('By GPU')} bars={spent.gpus} whole />
      {spent.idlers.length > 0 && (
        <Bars
          title={trans.__('Idle: %1 of the seven days, while no cell ran', usdText(spent.idle))} bars={spent.idlers} short={fileName}
        />
      )}
      {spent.kept.map(one => <Kept key={`${one.gpu} ${one.simulated}`} kept={one} />)}
      <div className="cb-dim cb-small">
        {trans.__('At reference prices.')} {spending.price_note}
        {spending.truncated ? ' ' + trans.__('Older ones are left out.') : ''}
      </div>
    </>
  );
}

/** The month beside what it may cost. */
function Budget(props: { spending: Spending; month: bigint; rate: bigint; refresh(): void }): JSX.Element {
  const { trans, api } = useTools();
  const { month, rate } = props;
  const budget = parseUsd(props.spending.budget_usd_per_month);
  const change = async (): Promise<void> => {
    const text = await askBudget(trans, props.spending.budget_usd_per_month ?? '');
    if (text !== null && (await tried(trans.__('The budget was not kept'), () => api.setBudget(text)))) {
      props.refresh();
    }
  };
  if (budget === 0n) {
    return (
      <div className="cb-small">
        <button className="cb-link" onClick={() => void change()}>
          {trans.__('Set a budget for the month')}
        </button>
      </div>
    );
  }
  const left = budget - month;
  const hours = rate > 0n && left > 0n ? Number(left / (rate * 3600n)) : null;
  return (
    <div className={left <= 0n ? 'cb-budget cb-budget-over' : 'cb-budget'}>
      <div className="cb-line">
        <div className="cb-text">
          <Meter
            label={trans.__('This month')} ratio={shareOf(month, budget)}
            text={trans.__('%1 of %2', usdText(month), usdText(budget))}
          />
        </div>
        <Action icon={editIcon} label={trans.__('Change the budget of the month')} onClick={() => void change()} />
      </div>
      {left <= 0n ? (
        <div className="cb-warning" role="alert">
          {trans.__('%1 over the budget. Schedules run again next month; what runs now is not stopped: stop or park it.', usdText(-left))}
        </div>
      ) : (
        hours !== null && <div className="cb-dim">{trans.__('At what runs now it lasts %1.', ageText(hours * 3600))}</div>
      )}
    </div>
  );
}

/** What costs money now although nothing runs in it. */
function IdleNow({ sessions }: { sessions: SessionRow[] }): JSX.Element | null {
  const { trans, api } = useTools();
  if (sessions.length === 0) {
    return null;
  }
  return (
    <ul className="cb-queue cb-idle" aria-label={trans.__('Idle now')}>
      {sessions.slice(0, SHOWN).map(session => {
        const title = sessionTitle(session);
        const rate = parseUsd(session.container?.usd_per_second);
        const idle = Date.now() / 1000 - (session.last_used_unix_seconds ?? Date.now() / 1000);
        return (
          <li key={session.id} className="cb-line">
            <span className="cb-text" title={trans.__('%1 a month if it stays so', usdText(rate * 3600n * HOURS_PER_MONTH))}>
              {trans.__('%1 is idle for %2 at %3', title, ageText(idle), rateText(rate))}
            </span>
            <Action
              icon={parkIcon} label={trans.__('Park %1: it costs nothing until its next cell', title)}
              onClick={() => void tried(trans.__('%1 could not be parked', title), () => api.park(session.id))}
            />
          </li>
        );
      })}
      {sessions.length > SHOWN && <li>{trans.__('and %1 more', sessions.length - SHOWN)}</li>}
    </ul>
  );
}

/** The break-even of one GPU type. */
function Kept({ kept }: { kept: IKept }): JSX.Element {
  const { trans } = useTools();
  const name = kept.simulated ? trans.__('%1 (simulated)', kept.gpu) : kept.gpu;
  const busy = trans.__('%1: busy %2 % of the week for %3.', name, shareText(kept.ratio), usdText(kept.usd));
  if (kept.reserved === null) {
    return (
      <div className="cb-note cb-kept">
        {busy} {trans.__('No price of a reserved one is known; [gpu.%1.reserved] in the price file says one.', kept.gpu)}
      </div>
    );
  }
  const cheaper = kept.reserved < kept.usd;
  const words = kept.machines > 1
    ? trans.__('%1 reserved ones would cost %2 a week', kept.machines, usdText(kept.reserved))
    : trans.__('Reserved would cost %1 a week', usdText(kept.reserved));
  return (
    <div className="cb-note cb-kept" title={trans.__('%1, %2', kept.source, kept.asOf)}>
      {busy} {words}
      {cheaper ? trans.__(': %1 less.', usdText(kept.usd - kept.reserved)) : '.'}{' '}
      <span className="cb-dim">{[kept.source, kept.asOf].filter(Boolean).join(', ')}</span>
    </div>
  );
}

function shareText(ratio: number): string {
  const percent = ratio * 100;
  return percent > 0 && percent < 1 ? '<1' : String(Math.round(percent));
}

function Bars(props: { title: string; bars: IBar[]; short?: (label: string) => string; whole?: boolean }): JSX.Element {
  const { trans } = useTools();
  const [all, setAll] = React.useState(false);
  const shown = all ? props.bars : props.bars.slice(0, SHOWN);
  const most = props.bars.reduce((max, bar) => (bar.usd > max ? bar.usd : max), 0n);
  return (
    <table className={props.whole ? 'cb-bars cb-bars-whole' : 'cb-bars'}>
      <caption>{props.title}</caption>
      <thead className="cb-spoken">
        <tr>
          <th>{props.title}</th>
          <th>{trans.__('Share')}</th>
          <th>{trans.__('Cost')}</th>
        </tr>
      </thead>
      <tbody>
        {shown.map(bar => (
          <tr key={bar.label} title={trans.__('%1: %2 in %3', bar.label, usdText(bar.usd), ageText(bar.seconds))}>
            <th scope="row">{props.short ? props.short(bar.label) : bar.label}</th>
            <td className="cb-bar" aria-hidden="true">
              <span style={{ width: `${shareOf(bar.usd, most) * 100}%` }} />
            </td>
            <td className="cb-bar-text">{usdText(bar.usd)}</td>
          </tr>
        ))}
      </tbody>
      {props.bars.length > SHOWN && (
        <tfoot>
          <tr>
            <td colSpan={3}>
              <button className="cb-link" onClick={() => setAll(!all)}>
                {all ? trans.__('Fewer') : trans.__('All %1', props.bars.length)}
              </button>
            </td>
          </tr>
        </tfoot>
      )}
    </table>
  );
}
