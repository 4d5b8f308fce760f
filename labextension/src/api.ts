/** Requests to our part of the Jupyter server; nothing else is talked to. */

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';
import {
  Chunk, Ends, ErrorInfo, FolderList, Logs, LookAt, Looked, RunList, SaveSchedule, SchedulePreview, SchedulesShown, ScheduleShown, SecretList, SecretRow, SessionParked, SharedList, SharedRow, SharedSize, Spending, Status,
  TakeEnds, VolumeChange, VolumeList, VolumeRow
} from './protocol';

/** What stands before a network file system's name where a volume has its name: no volume's name begins so. */
export const SHARED = 'nfs://';

/** An error as the server says it. */
export class ApiError extends Error {
  constructor(readonly info: ErrorInfo, readonly status: number) {
    super(info.message);
  }

  get text(): string {
    return infoText(this.info);
  }
}

/** All of an error: what is wrong, what is allowed, what to do next. */
export function infoText({ message, allowed, next }: ErrorInfo): string {
  return [message, allowed && `allowed: ${allowed}`, next].filter(Boolean).join('. ');
}

/** An error's words, whatever it is. */
export function errorText(error: unknown): string {
  return error instanceof ApiError ? error.text : error instanceof Error ? error.message : String(error);
}

export class Api {
  constructor(readonly settings: ServerConnection.ISettings) {}

  start = (): Promise<Status> => this.send('POST', 'start', {});
  stop = (session: string): Promise<unknown> => this.send('DELETE', `sessions/${part(session)}`);
  park = (session: string): Promise<SessionParked> => this.send('POST', `sessions/${part(session)}/park`, {});
  logs = (session: string): Promise<Logs> => this.send('GET', `sessions/${part(session)}/logs`);
  spending = (since: number): Promise<Spending> => this.send('GET', `spending?since=${since}`);

  setBudget = (usd: string): Promise<unknown> => this.send('PUT', 'budget', { usd_per_month: usd });

  secrets = (): Promise<SecretList> => this.send('GET', 'secrets');
  putSecret = (name: string, values: Record<string, string>, mode: 'create' | 'replace'): Promise<SecretRow> =>
    this.send('POST', 'secrets', { name, values, mode });
  deleteSecret = (name: string): Promise<unknown> => this.send('DELETE', `secrets/${part(name)}`);

  volumes = (): Promise<VolumeList> => this.send('GET', 'volumes');
  createVolume = (name: string): Promise<VolumeRow> => this.send('POST', 'volumes', { name });
  renameVolume = (name: string, to: string): Promise<VolumeRow> => this.send('PATCH', `volumes/${part(name)}`, { name: to });
  deleteVolume = (name: string, used: boolean): Promise<unknown> =>
    this.send('DELETE', `volumes/${part(name)}${used ? '?used=1' : ''}`);
  folder = (volume: string, path: string): Promise<FolderList> =>
    this.send('GET', `${place(volume)}/files?path=${part(path)}`);
  change = (volume: string, change: VolumeChange): Promise<unknown> => this.send('POST', `${place(volume)}/files`, change);

  shareds = (): Promise<SharedList> => this.send('GET', 'nfs');
  createShared = (name: string): Promise<SharedRow> => this.send('POST', 'nfs', { name });
  deleteShared = (name: string, used: boolean): Promise<unknown> => this.send('DELETE', `nfs/${part(name)}${used ? '?used=1' : ''}`);
  sharedSize = (name: string): Promise<SharedSize> => this.send('GET', `nfs/${part(name)}/size`);

  schedules = (): Promise<SchedulesShown> => this.send('GET', 'schedules');
  schedule = (schedule: string): Promise<ScheduleShown> => this.send('GET', `schedules/${part(schedule)}`);
  lookSchedule = (asked: LookAt): Promise<Looked> => this.send('POST', 'schedules/look', asked);
  previewSchedule = (asked: LookAt): Promise<SchedulePreview> => this.send('POST', 'schedules/preview', asked);
  createSchedule = (form: SaveSchedule): Promise<ScheduleShown> => this.send('POST', 'schedules', form);
  changeSchedule = (schedule: string, form: SaveSchedule): Promise<ScheduleShown> => this.send('PUT', `schedules/${part(schedule)}`, form);
  takeNotebook = (schedule: string): Promise<ScheduleShown> => this.send('POST', `schedules/${part(schedule)}/take`, {});
  takeEnds = (asked: TakeEnds): Promise<Ends> => this.send('POST', 'ends', asked);
  cancelRun = (run: string): Promise<unknown> => this.send('DELETE', `runs/${part(run)}`);
  /** The executed notebook of a run, as it is now. */
  runNotebook = (run: string): Promise<any> => this.send('GET', `runs/${part(run)}/notebook`);
  /** Where a link downloads it from. */
  runNotebookUrl = (run: string): string => this.url(`runs/${part(run)}/notebook?download=1`);
  /** Where a link downloads a file from that it wrote. */
  runFileUrl = (run: string, path: string): string => this.url(`runs/${part(run)}/files/${path.split('/').map(part).join('/')}`);
  runs = (schedule: string): Promise<RunList> => this.send('GET', `schedules/${part(schedule)}/runs`);
  pauseSchedule = (schedule: string, paused: boolean): Promise<unknown> =>
    this.send('PATCH', `schedules/${part(schedule)}`, { paused });
  runSchedule = (schedule: string): Promise<unknown> => this.send('POST', `schedules/${part(schedule)}/runs`, {});
  deleteSchedule = (schedule: string): Promise<unknown> => this.send('DELETE', `schedules/${part(schedule)}`);

  /** Those of some pieces' hashes that the gateway has not. */
  missing = async (volume: string, hashes: string[]): Promise<string[]> =>
    (await this.send<{ hashes?: string[] }>('POST', `${place(volume)}/chunks/missing`, { hashes })).hashes ?? [];

  /** A piece of a file. */
  async chunk(volume: string, piece: Blob, signal: AbortSignal): Promise<Chunk> {
    return (await this.request('POST', `${place(volume)}/chunks`, { body: piece, signal })).json();
  }

  /** The start of a file, at most 8 MiB, for a preview. */
  async preview(volume: string, path: string): Promise<Blob> {
    return (await this.request('GET', `${this.filePath(volume, path)}?preview=1`, {})).blob();
  }

  /** Where a link downloads a file from. */
  fileUrl(volume: string, path: string): string {
    return this.url(this.filePath(volume, path));
  }

  /** Whether the server answers, and lets this person in no more. */
  async loggedOut(): Promise<boolean> {
    try {
      const answer = await ServerConnection.makeRequest(URLExt.join(this.settings.baseUrl, 'api/me'), { cache: 'no-store' }, this.settings);
      return answer.status === 401 || answer.status === 403;
    } catch {
      return false;
    }
  }

  /** Where a person logs in. */
  get loginUrl(): string {
    return URLExt.join(this.settings.baseUrl, 'login');
  }

  /** The address of the window's WebSocket. */
  get liveUrl(): string {
    const url = URLExt.join(this.settings.wsUrl, 'cellburst', 'live');
    return this.settings.appendToken && this.settings.token ? `${url}?token=${part(this.settings.token)}` : url;
  }

  private filePath(volume: string, path: string): string {
    return `${place(volume)}/files/${path.split('/').map(part).join('/')}`;
  }

  private url(path: string): string {
    return URLExt.join(this.settings.baseUrl, 'cellburst') + '/' + path;
  }

  private async send<T>(method: string, path: string, body?: unknown): Promise<T> {
    return (await this.request(method, path, body === undefined ? {} : { body: JSON.stringify(body) })).json();
  }

  private async request(method: string, path: string, init: RequestInit): Promise<Response> {
    const answer = await ServerConnection.makeRequest(this.url(path), { ...init, method }, this.settings);
    if (answer.ok) {
      return answer;
    }
    let info: ErrorInfo = { code: 'platform.internal', message: `The server answered with status ${answer.status}` };
    try {
      const said = await answer.json();
      info = said.code ? said : { ...info, message: said.message ?? info.message };
    } catch {
      // Not JSON: a proxy's page. The status has to do.
    }
    if (answer.status === 401 || answer.status === 403) {
      info = { ...info, next: 'Log in to Jupyter again: reload this page' };
    }
    throw new ApiError(info, answer.status);
  }
}

/** Where a volume or a network file system is asked for. */
function place(volume: string): string {
  return volume.startsWith(SHARED) ? `nfs/${part(volume.slice(SHARED.length))}` : `volumes/${part(volume)}`;
}

function part(text: string): string {
  return encodeURIComponent(text);
}
