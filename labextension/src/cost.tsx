/** "Cost": today and the last seven days, by notebook and GPU, as bars with a table behind them. */

import * as React from 'react';
import { rateText, parseUsd, shareOf, usdText } from './money';
import { ListBody, Section } from './parts';
import { Status } from './protocol';
import { dayStart, IBar, summary } from './spending';
import { rateNow } from './now';
import { useList, useTools } from './tools';
import { ageText, fileName } from './words';

const SHOWN = 8;

export function Cost(props: { status: Status | null; open: boolean }): JSX.Element {
  const { trans, api } = useTools();
  const list = useList(() => api.spending(dayStart(new Date(), 6).getTime() / 1000), props.open && !!props.status, [api]);
  const rate = props.status ? rateNow(props.status) : 0n;
  return (
    <Section id="cost" title={trans.__('Cost')} note={rate > 0n ? trans.__('%1 now', rateText(rate)) : ''} open={props.open}>
      <ListBody
        list={list} rows={value => value.rows ?? []}
        empty={trans.__('Nothing was spent in the last seven days. A cell shows its price before and while it runs.')}
      >
        {(rows, value) => {
          const spent = summary(rows, new Date(), trans.__('no GPU'));
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
                  <dd>{rateText(parseUsd(value.usd_per_second))}</dd>
                </div>
              </dl>
              <Bars title={trans.__('By day')} bars={spent.days} />
              <Bars title={trans.__('By notebook')} bars={spent.notebooks} short={fileName} />
              <Bars title={trans.__('By GPU')} bars={spent.gpus} whole />
              <div className="cb-dim cb-small">
                {trans.__('At reference prices.')} {value.price_note}
                {value.truncated ? ' ' + trans.__('Older ones are left out.') : ''}
              </div>
            </>
          );
        }}
      </ListBody>
    </Section>
  );
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
