/** "Machines": workers and their GPUs, what is free, what waits. */

import * as React from 'react';
import { Absent, Meter, Note, RowList, Section, Simulated } from './parts';
import { GpuShown, GpuUsage, Status, WorkerRow } from './protocol';
import { useTools } from './tools';
import { gibText } from './words';

export function Machines(props: { status: Status | null; open: boolean }): JSX.Element {
  const { trans } = useTools();
  const workers = props.status?.workers ?? [];
  const queue = props.status?.queue ?? [];
  const all = workers.reduce((sum, worker) => sum + (worker.inventory.gpus?.length ?? 0), 0);
  const free = workers.reduce((sum, worker) => sum + (worker.state === 'joined' ? worker.free_gpus?.length ?? 0 : 0), 0);
  const note = [
    all ? trans.__('%1 of %2 GPUs free', free, all) : workers.length ? trans.__('no GPU') : '',
    queue.length ? trans.__('%1 waiting', queue.length) : ''
  ].filter(Boolean);
  return (
    <Section id="machines" title={trans.__('Machines')} note={note.join(' · ')} open={props.open}>
      {!props.status ? (
        <Absent />
      ) : workers.length === 0 ? (
        <Note>{trans.__('No machine has joined yet. The worker of this machine joins a moment after the gateway starts.')}</Note>
      ) : (
        <RowList label={trans.__('Machines')} rows={workers} rowHeight={140} rowKey={worker => worker.id}>
          {worker => <Worker worker={worker} />}
        </RowList>
      )}
      {queue.length > 0 && (
        <ul className="cb-queue" aria-label={trans.__('Queue')}>
          {queue.slice(0, 50).map((line, index) => (
            <li key={index}>{line}</li>
          ))}
        </ul>
      )}
    </Section>
  );
}

function Worker({ worker }: { worker: WorkerRow }): JSX.Element {
  const { trans } = useTools();
  const { inventory } = worker;
  const engine = inventory.engines?.[0];
  const here = worker.state === 'joined';
  return (
    <>
      <div className="cb-line">
        <span className={`cb-dot cb-dot-${here ? 'idle' : 'superseded'}`} aria-hidden="true" />
        <span className="cb-name cb-name-plain" title={worker.id}>{inventory.hostname || worker.id}</span>
        {!here && <span className="cb-tag">{trans.__('unreachable')}</span>}
      </div>
      <div className="cb-dim cb-text">
        {[trans.__('%1 cores', inventory.cpu_cores), gibText(inventory.memory_mib), engine?.name ?? ''].filter(Boolean).join(' · ')}
      </div>
      {engine?.warning && <div className="cb-dim cb-warning">{engine.warning}</div>}
      {(inventory.gpus ?? []).map(gpu => (
        <Gpu key={gpu.uuid} gpu={gpu} free={!!worker.free_gpus?.includes(gpu.uuid)} usage={worker.gpu_usage?.find(u => u.uuid === gpu.uuid)} />
      ))}
    </>
  );
}

function Gpu({ gpu, free, usage }: { gpu: GpuShown; free: boolean; usage?: GpuUsage }): JSX.Element {
  const { trans } = useTools();
  const figures = gpu.simulated ? [gibText(gpu.memory_mib ?? 0), gpu.in_use ?? ''].filter(Boolean) : [
    gibText(usage?.memory_total_mib ?? gpu.memory_mib ?? 0),
    usage?.temperature_celsius !== undefined && usage.temperature_celsius !== null ? `${Math.round(usage.temperature_celsius)} °C` : '',
    usage?.power_watts !== undefined && usage.power_watts !== null ? `${Math.round(usage.power_watts)} W` : '',
    gpu.in_use
  ].filter(Boolean);
  const total = usage?.memory_total_mib ?? gpu.memory_mib ?? 0;
  const used = usage?.memory_used_mib;
  const utilization = usage?.utilization_ratio;
  return (
    <div className="cb-gpu">
      <div className="cb-line">
        <span className="cb-text" title={gpu.name}>
          <b>{gpu.type}</b>
        </span>
        {gpu.simulated && <Simulated />}
        <span className={free ? 'cb-free' : 'cb-taken'}>{free ? trans.__('free') : trans.__('in use')}</span>
      </div>
      {!gpu.simulated && (
        <div className="cb-meters">
          {utilization !== undefined && utilization !== null && (
            <Meter label={trans.__('GPU')} ratio={utilization} text={`${Math.round(utilization * 100)} %`} />
          )}
          {used !== undefined && used !== null && <Meter label={trans.__('Memory')} ratio={total ? used / total : 0} text={gibText(used)} />}
        </div>
      )}
      {figures.length > 0 && <div className="cb-dim">{figures.join(' · ')}</div>}
    </div>
  );
}
