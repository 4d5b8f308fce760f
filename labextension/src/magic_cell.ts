/** The `%%modal` line of a cell: what GPU it asks for, and the cell with another one. */

import { GpuShown, Status } from './protocol';

const LINE = /^(\s*)(%%(?:modal|gpu))(?=\s|$)(.*)$/;
// `gpu=X`, `--gpu=X`, `--gpu X`; the value may be quoted, as it has to be with a space in it.
const GPU = /(^|\s)(?:--gpu(?:=|\s+)|gpu=)("[^"]*"|'[^']*'|\S*)/;

/** What a cell asks for: null where it runs in the notebook's own kernel, "" for a container without a GPU. */
export function gpuOf(source: string): string | null {
  const line = LINE.exec(firstLine(source)[0]);
  if (!line) {
    return null;
  }
  const found = GPU.exec(line[3]);
  return found ? found[2].replace(/^(["'])(.*)\1$/, '$2') : '';
}

/** The cell's text when it asks for `gpu`; null takes the line away, "" asks for no GPU. All other keys stay as they are. */
export function withGpu(source: string, gpu: string | null): string {
  const [first, before, after] = firstLine(source);
  const line = LINE.exec(first);
  if (gpu === null) {
    return line ? before + after.replace(/^\n/, '') : source;
  }
  const asked = gpu ? ` gpu=${/\s/.test(gpu) ? `"${gpu}"` : gpu}` : '';
  if (!line) {
    return `%%modal${asked}\n${source}`;
  }
  const rest = GPU.test(line[3]) ? line[3].replace(GPU, () => asked) : asked + line[3];
  return `${before}${line[1]}${line[2]}${rest.trimEnd()}${after}`;
}

/** The first line that is not blank, what stands before it, and what comes after it (with its line feed). */
function firstLine(source: string): [string, string, string] {
  const before = /^(?:[^\S\n]*\n)*/.exec(source)![0];
  const rest = source.slice(before.length);
  const end = rest.indexOf('\n');
  return end < 0 ? [rest, before, ''] : [rest.slice(0, end), before, rest.slice(end)];
}

/** A kind of GPU in the fleet. `usdPerSecond` is of one, "" where no price is known. */
export interface IKind {
  type: string;
  total: number;
  free: number;
  /** The most that one machine has. */
  most: number;
  usdPerSecond: string;
  simulated: boolean;
}

/** The fleet's GPUs by type, the cheapest first, those without a price last. */
export function kinds(status: Status | null): IKind[] {
  const found = new Map<string, IKind>();
  for (const worker of status?.workers ?? []) {
    if (worker.state !== 'joined') {
      continue;
    }
    const here = new Map<string, GpuShown[]>();
    for (const gpu of worker.inventory.gpus ?? []) {
      here.set(gpu.type, [...(here.get(gpu.type) ?? []), gpu]);
    }
    for (const [type, gpus] of here) {
      const kind = found.get(type) ?? {
        type, total: 0, free: 0, most: 0, usdPerSecond: status?.gpu_usd_per_second?.[type] ?? '', simulated: false
      };
      kind.total += gpus.length;
      kind.free += gpus.filter(gpu => worker.free_gpus?.includes(gpu.uuid)).length;
      kind.most = Math.max(kind.most, gpus.length);
      kind.simulated = kind.simulated || gpus.some(gpu => !!gpu.simulated);
      found.set(type, kind);
    }
  }
  const price = (kind: IKind): number => (kind.usdPerSecond ? Number(kind.usdPerSecond) : Infinity);
  return [...found.values()].sort((a, b) => (price(a) === price(b) ? a.type.localeCompare(b.type) : price(a) - price(b)));
}
