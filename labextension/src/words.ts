/** Sizes, times and names as people read them. */

import { language } from './language';
import { ContainerInfo, GpuShown, SessionRow } from './protocol';

/** Bytes in powers of 1000, as file managers show them: `1.2 GB`. */
export function sizeText(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];
  let unit = 0;
  let value = bytes;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return unit === 0 ? `${Math.round(value)} B` : `${value.toFixed(1)} ${units[unit]}`;
}

/** MiB as GiB: `39.4 GiB`. */
export function gibText(mib: number): string {
  const gib = mib / 1024;
  return `${gib >= 10 ? Math.round(gib) : gib.toFixed(1)} GiB`;
}

/** A duration in one unit: `40 s`, `5 min`, `3 h`, `6 days`. */
export function ageText(seconds: number): string {
  const { trans } = language;
  if (seconds < 60) {
    return trans.__('%1 s', Math.max(0, Math.round(seconds)));
  }
  if (seconds < 3600) {
    return trans.__('%1 min', Math.floor(seconds / 60));
  }
  if (seconds < 48 * 3600) {
    return trans.__('%1 h', Math.floor(seconds / 3600));
  }
  const days = Math.floor(seconds / 86400);
  return trans._n('%1 day', '%1 days', days);
}

/** The last part of a path. */
export function fileName(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1) || path;
}

/** GPUs of a container: `A100-40GB`, `H100 × 2`, `` for none. */
export function gpuText(gpus: GpuShown[] | undefined): string {
  if (!gpus || gpus.length === 0) {
    return '';
  }
  return gpus.length === 1 ? gpus[0].type : `${gpus[0].type} × ${gpus.length}`;
}

/** Whether any of them is simulated. */
export function isSimulated(gpus: GpuShown[] | undefined): boolean {
  return !!gpus?.some(gpu => gpu.simulated);
}

/** The notebook of a session, and its name where it is not the usual one. */
export function sessionTitle(session: SessionRow): string {
  const book = fileName(session.notebook) || session.id;
  return session.name && session.name !== 'default' ? `${book}: ${session.name}` : book;
}

/** Cores and memory of a container. */
export function sharesText(container: ContainerInfo): string {
  return `${Number((container.cpu ?? 0).toFixed(2))} CPU, ${gibText(container.memory_mib ?? 0)}`;
}

/** A mean of figures that are known; null where none is. */
export function mean(values: (number | null | undefined)[]): number | null {
  const known = values.filter((value): value is number => value !== null && value !== undefined);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}
