// Made by scripts/protocol_types.py from protocol/. Do not edit: change the protocol and run it again.
// What has a default is left out on the wire.

/** A bucket and how it is reached; never a credential. `key_prefix` ends without "/"; `secret` is a secret's name. */
export interface BucketSource {
  name: string;
  endpoint_url?: string;
  key_prefix?: string;
  secret?: string;
  requester_pays?: boolean;
}

export type Chunk = [hash: string, size_bytes: number];

/** A container as it is shown to people. `resources` is what it was asked for (of the limits of a call: the first's). */
export interface ContainerInfo {
  id: string;
  worker?: string;
  machine?: string;
  engine?: string;
  isolates?: boolean;
  network?: string;
  gpus?: GpuShown[];
  cpu?: number;
  memory_mib?: number;
  usd_per_second?: string;
  price_note?: string;
  resources?: Resources | null;
  python_version?: string;
  image?: string;
  state?: ContainerState;
  uptime_seconds?: number;
  phases?: PhaseTime[];
  notes?: string[];
}

export type ContainerState =
  | 'placed'
  | 'starting'
  | 'ready'
  | 'stopping'
  | 'ended';

/** One container's usage over the last second. `uptime_seconds` is monotonic, counted by the worker from the lease. */
export interface ContainerUsage {
  container: string;
  uptime_seconds: number;
  cpu_cores?: number | null;
  memory_bytes?: number | null;
  memory_limit_bytes?: number | null;
  gpus?: GpuUsage[];
}

/** Cost of one session, summed over its leases. `what` is the hardware of its newest container, also of one that ended. */
export interface CostLine {
  session: string;
  notebook: string;
  name: string;
  seconds: number;
  usd: string;
  running?: boolean;
  usd_per_second?: string;
  what?: string;
  parked?: boolean;
}

/** What was spent, at reference prices. */
export interface CostReport {
  total_usd: string;
  lines?: CostLine[];
  price_note?: string;
}

/** Something that ended and that nobody may have watched. `title` is a notebook's path, or what was built; `problem` says in words why it failed, "" if it did not. */
export interface EndedThing {
  id: string;
  kind: 'cell' | 'build';
  title: string;
  session?: string;
  problem?: string;
  seconds?: number;
  ended_unix_seconds?: number;
}

/** What ended in the last day and was not told to whoever asks, the oldest first, at most some of each kind: ask again when they are shown. They are this window's for a moment; those that it does not name in `shown` by then are told by another. */
export interface Ends {
  things?: EndedThing[];
  runs?: RunRow[];
}

/** An engine a worker has, and what it isolates. `warning` is shown to the user whenever the engine is used. */
export interface EngineInfo {
  name: string;
  isolates: boolean;
  snapshot?: boolean;
  network?: boolean;
  gpu?: boolean;
  unprivileged?: boolean;
  version?: string;
  warning?: string;
}

export type ErrorCode =
  | 'request.bad_argument'
  | 'request.bad_message'
  | 'request.unknown_gpu'
  | 'request.not_yet'
  | 'request.unauthenticated'
  | 'request.forbidden'
  | 'request.not_found'
  | 'request.conflict'
  | 'request.busy'
  | 'request.version'
  | 'request.unpicklable'
  | 'request.unknown_name'
  | 'request.too_large'
  | 'request.python_differs'
  | 'request.budget'
  | 'request.volume_conflict'
  | 'user_code.raised'
  | 'user_code.exited'
  | 'user_code.out_of_memory'
  | 'user_code.timeout'
  | 'user_code.interrupted'
  | 'user_code.image_build'
  | 'capacity.no_such_hardware'
  | 'capacity.no_worker'
  | 'capacity.queue_full'
  | 'platform.worker_lost'
  | 'platform.container_lost'
  | 'platform.start_failed'
  | 'platform.link_closed'
  | 'platform.gateway_down'
  | 'platform.disk_full'
  | 'platform.store'
  | 'platform.integrity'
  | 'platform.internal'
  | 'platform.unavailable';

/** An error as it crosses a process. */
export interface ErrorInfo {
  code: ErrorCode;
  message: string;
  allowed?: string;
  next?: string;
  detail?: Record<string, string>;
}

/** A file that the session wrote or deleted in its layer over the notebook's folder; `path` is relative to it. */
export interface FileChange {
  path: string;
  size_bytes?: number;
  deleted?: boolean;
}

/** What a run would ("problem") or may ("hint") stumble over; `cell` 0 is the notebook. */
export interface FindingShown {
  kind: string;
  cell?: number;
  text?: string;
}

/** A file, link or folder in a folder. `size_bytes` and `files` of a folder are of all below it. */
export interface FolderEntry {
  name: string;
  kind?: string;
  size_bytes?: number;
  modified_unix_seconds?: number;
  files?: number;
}

/** One folder, folders first, by name. `entries_count` is of all, also those beyond what is shown. */
export interface FolderList {
  version: number;
  path?: string;
  entries?: FolderEntry[];
  entries_count?: number;
}

/** What runs will cost, from the last ones that succeeded. `runs_count` of them (0: there is none yet, and nothing is told); `run_usd` is their mean, `month_usd` that times the `month_instants_count` of the next 30 days. */
export interface Forecast {
  runs_count?: number;
  run_usd?: string;
  month_instants_count?: number;
  month_usd?: string;
}

/** One alternative of a GPU request: `count` GPUs of `type` ("any", a family or a canonical or NVML-style name). */
export interface GpuChoice {
  type: string;
  count?: number;
}

/** A GPU of the inventory or of a lease, as it is shown: `index` is the machine's, `uuid` NVML's (or SIM-…). */
export interface GpuShown {
  index: number;
  uuid: string;
  type: string;
  name: string;
  memory_mib?: number;
  simulated?: boolean;
  in_use?: string;
}

/** Live figures of one GPU from NVML. A figure that NVML does not give is None. */
export interface GpuUsage {
  uuid: string;
  utilization_ratio?: number | null;
  memory_used_mib?: number | null;
  memory_total_mib?: number | null;
  power_watts?: number | null;
  temperature_celsius?: number | null;
  simulated?: boolean;
}

/** What a worker's machine has to lease. */
export interface Inventory {
  hostname: string;
  cpu_cores: number;
  memory_mib: number;
  gpus?: GpuShown[];
  engines?: EngineInfo[];
  python_versions?: string[];
  notes?: string[];
}

/** Text of streams and errors, in order, without escape sequences other than SGR colours. */
export interface Logs {
  text: string;
  truncated?: boolean;
}

/** A question: what of this would a run stumble over? `path` is the Jupyter server's, or `schedule` an id. Without `text` the answer fills the form. */
export interface LookAt {
  path?: string;
  schedule?: string;
  text?: ScheduleText | null;
  take?: boolean;
}

/** The form's start, and what a run would have and stumble over. `parameters` None: no cell has the tag. `problem`: it cannot be scheduled as it was typed; of what it has then only the parameters are told, and for a new form its start. */
export interface Looked {
  text: ScheduleText;
  notebook?: string;
  python?: string;
  python_version?: string;
  parameters?: ParameterShown[] | null;
  findings?: FindingShown[];
  notes?: string[];
  files_count?: number;
  files_bytes?: number;
  problem?: ErrorInfo | null;
}

/** A file whose chunks were uploaded. */
export interface NewFile {
  path: string;
  size_bytes: number;
  chunks?: Chunk[];
  modified_unix_seconds?: number;
}

/** A parameter of the notebook: its type ("" for any) and its default as it stands in the cell. */
export interface ParameterShown {
  name: string;
  type?: string;
  default?: string;
}

/** A parked session's bytes, as its worker keeps them and as lists show them. */
export interface ParkedInfo {
  id: string;
  session: string;
  kind?: 'snapshot' | 'names';
  size_bytes?: number;
  names?: string[];
  lost?: RemoteName[];
  parked_unix_seconds?: number;
  expires_unix_seconds?: number;
  worker?: string;
  resources?: Resources | null;
}

/** How long one phase of a start took. */
export interface PhaseTime {
  name: 'queue' | 'image' | 'restore' | 'boot' | 'enter' | 'values' | 'run';
  seconds: number;
  detail?: string;
}

/** A name that stays in the container: what a `Remote` handle shows without fetching. */
export interface RemoteName {
  name: string;
  type: string;
  size_bytes?: number;
  shape?: string;
  length?: number | null;
  head?: string;
  why?: 'too_large' | 'unpicklable' | 'not_asked' | 'python_differs';
  detail?: string;
}

/** A file or a whole folder gets another path. */
export interface Rename {
  path: string;
  to: string;
}

/** What a machine with one GPU of a type costs that is kept all the time: a list price with its date, or the operator's. */
export interface ReservedPrice {
  gpu: string;
  usd_per_hour: string;
  as_of?: string;
  source?: string;
}

/** What a container holds while it lives, and how long one call may take. */
export interface Resources {
  gpus?: GpuChoice[];
  cpu?: number;
  memory_mib?: number;
  timeout_seconds?: number | null;
  scaledown_seconds?: number;
  budget_usd?: string | null;
  network?: string;
}

/** Runs, newest first. `after_unix_seconds` of the question leaves out those that ended before. */
export interface RunList {
  rows?: RunRow[];
}

export type RunReason =
  | 'done'
  | 'raised'
  | 'timeout'
  | 'budget'
  | 'start_failed'
  | 'notebook'
  | 'stopped'
  | 'cancelled'
  | 'replaced'
  | 'deleted'
  | 'worker_lost'
  | 'container_lost'
  | 'gateway_stopped'
  | 'overlap'
  | 'queue_full'
  | 'month_budget'
  | 'gateway_down'
  | 'clock'
  | 'late'
  | 'newer';

/** A run in a list. `instant_unix_seconds` is when it was due; of a run that somebody asked for, when that was (`trigger`). */
export interface RunRow {
  id: string;
  schedule: string;
  name: string;
  trigger?: 'time' | 'person';
  instant_unix_seconds: number;
  until_unix_seconds?: number;
  instants_count?: number;
  state: RunState;
  reason?: RunReason | null;
  error?: ErrorInfo | null;
  attempt?: number;
  session?: string;
  created_unix_seconds?: number;
  started_unix_seconds?: number | null;
  ended_unix_seconds?: number | null;
  cost_usd?: string;
  cells_count?: number;
  cells_done_count?: number;
  cell?: number;
  notes?: string[];
  files?: FileChange[];
  has_notebook?: boolean;
  tell_jupyter?: boolean;
  environment?: '' | 'live' | 'frozen' | 'image';
}

export type RunState =
  | 'queued'
  | 'starting'
  | 'running'
  | 'succeeded'
  | 'failed'
  | 'cancelled'
  | 'lost'
  | 'skipped'
  | 'missed';

/** What the form saves. `path` of a new one; `revision` is what the editor saw; `take` the notebook as it is now, else the one that the schedule keeps. */
export interface SaveSchedule {
  text: ScheduleText;
  path?: string;
  revision?: number;
  take?: boolean;
}

/** Times in words, the next five instants, with the local time of each in the schedule's zone; or what is wrong. */
export interface SchedulePreview {
  words?: string;
  next_unix_seconds?: number[];
  next_local?: string[];
  problem?: ErrorInfo | null;
  machine?: string;
  forecast?: Forecast;
}

/** A schedule in a list. `revision` is what an edit has to name. `state` "done": it has no further instant. `words` reads its times for people; `machine` must be on for them; `cost_usd` is of all runs that are kept. */
export interface ScheduleRow {
  id: string;
  name: string;
  notebook: string;
  notebook_hash?: string;
  revision: number;
  state: 'active' | 'paused' | 'done';
  when: When;
  words?: string;
  machine?: string;
  next_unix_seconds?: number | null;
  last?: RunRow | null;
  running?: string;
  cost_usd?: string;
  mean_cost_usd?: string;
  forecast?: Forecast;
  created_unix_seconds?: number;
  changed_unix_seconds?: number;
  secrets?: string[];
  volumes?: string[];
}

/** A schedule for its editor. `changed`: the notebook is another now than the one that is kept; `gone`: it is not there; `environment_changes`: packages that are others now, a line each; `missing`: secrets and volumes that are not there. */
export interface ScheduleShown {
  row: ScheduleRow;
  text: ScheduleText;
  next_unix_seconds?: number[];
  changed?: boolean;
  gone?: boolean;
  environment_changes?: string[];
  missing?: string[];
}

/** A schedule as the form has it: the fields of `cellburst.scheduling.Asked`. One of `cron`, `every` and `at` is given. */
export interface ScheduleText {
  cron?: string;
  every?: string;
  at?: string;
  timezone?: string;
  name?: string;
  gpu?: string;
  memory?: string;
  cpu?: string;
  network?: string;
  parameters?: Record<string, boolean | number | string | unknown[] | Record<string, unknown> | null>;
  secrets?: string;
  volumes?: string;
  timeout?: string;
  retries?: number;
  budget?: string;
  overlap?: string;
  missed?: string;
  missed_window?: string;
  keep_runs?: number;
  keep_days?: number;
  notify?: string[];
  folder?: boolean;
  modal_cells?: string;
  image?: string;
  environment?: string;
}

/** All schedules by name; `changed` are ids of those whose notebook is another now than the one that is kept, `gone` of those whose notebook's file is not there any more. */
export interface SchedulesShown {
  rows?: ScheduleRow[];
  changed?: string[];
  gone?: string[];
}

/** All secrets of the workspace by name; `notes` are stores that could not be asked, in words. */
export interface SecretList {
  rows?: SecretRow[];
  notes?: string[];
}

/** A secret as it is shown: never a value. `store` is "local", "file" or "vault"; only local ones can be changed here. `sealed` says why its values cannot be read now, "" if they can. `used_by` are schedules that name it, as words for people. */
export interface SecretRow {
  name: string;
  keys?: string[];
  version?: number;
  created_unix_seconds?: number;
  updated_unix_seconds?: number;
  last_used_unix_seconds?: number;
  store?: string;
  sealed?: string;
  used_by?: string[];
}

/** The session is parked: nothing runs, nothing costs. The next cell brings it back. */
export interface SessionParked {
  parked: ParkedInfo;
  seconds?: number;
  notes?: string[];
}

/** A session in a list. */
export interface SessionRow {
  id: string;
  notebook: string;
  name: string;
  state: SessionState;
  kernel_id?: string;
  container?: ContainerInfo | null;
  running_call?: string;
  created_unix_seconds?: number;
  last_used_unix_seconds?: number;
  cost_usd?: string;
  names?: string[];
  parked?: ParkedInfo | null;
  usage?: ContainerUsage | null;
  volumes?: VolumeMount[];
}

export type SessionState =
  | 'starting'
  | 'idle'
  | 'busy'
  | 'parking'
  | 'parked'
  | 'superseded'
  | 'ended';

/** All of the workspace, by name. */
export interface SharedList {
  rows?: SharedRow[];
}

/** A network file system in a list. `used_by` are running or parked sessions and schedules, as words for people. */
export interface SharedRow {
  name: string;
  changed_unix_seconds?: number;
  used_by?: string[];
}

/** What its files hold together, links not counted. Not `whole`: there are so many that these are only some of them. */
export interface SharedSize {
  size_bytes?: number;
  files?: number;
  whole?: boolean;
}

/** What a worker keeps on disk and warm. `limit_bytes` bounds templates and parked sessions together. */
export interface SnapshotUsage {
  template_count?: number;
  template_bytes?: number;
  parked_count?: number;
  parked_bytes?: number;
  limit_bytes?: number;
  warm?: WarmContainer[];
}

/** Rows by hour. `truncated`: there were more leases than were asked for, and the oldest are left out. `reserved` is of the GPU types in the rows, as far as a price is known. `budget_usd_per_month` is what the workspace means to spend, "" where it says nothing of it; when it is spent, runs of schedules are skipped. */
export interface Spending {
  since_unix_seconds: number;
  rows?: SpendingRow[];
  usd_per_second?: string;
  price_note?: string;
  truncated?: boolean;
  reserved?: ReservedPrice[];
  budget_usd_per_month?: string;
}

/** What one notebook spent on one kind of hardware in one hour of the clock (UTC), at reference prices. `gpu` is its type and, where there are several, their number ("A100-40GB", "H100:2"), "" for none. `idle_seconds` and `idle_usd` are the part of it in which a container was ready and no cell ran in it. */
export interface SpendingRow {
  hour_unix_seconds: number;
  notebook: string;
  gpu?: string;
  simulated?: boolean;
  seconds?: number;
  usd?: string;
  idle_seconds?: number;
  idle_usd?: string;
}

/** The whole picture, for `cellburst status`, `ps` and the panel. `gpu_usd_per_second` is the reference price of each GPU type that the workers have, as decimal text; `ended` the last detached cells and long builds. */
export interface Status {
  gateway_pid: number;
  gateway_url: string;
  version: string;
  uptime_seconds: number;
  data_folder: string;
  workers?: WorkerRow[];
  sessions?: SessionRow[];
  queue?: string[];
  gpu_usd_per_second?: Record<string, string>;
  ended?: EndedThing[];
}

/** A window's request for what it is to tell; `shown` are ids of ends that it has told. Answered with Ends. */
export interface TakeEnds {
  window: string;
  shown?: string[];
}

/** What a window asks to change, all or none. Without `overwrite` nothing that is there is replaced. */
export interface VolumeChange {
  files?: NewFile[];
  deleted?: string[];
  renamed?: Rename[];
  overwrite?: boolean;
}

/** All volumes of the workspace, by name. */
export interface VolumeList {
  rows?: VolumeRow[];
}

/** A volume in a container, or what is shown as one: a `bucket`, or a network file system (`kind` "shared"). `path` is absolute. */
export interface VolumeMount {
  volume: string;
  name: string;
  path: string;
  read_only?: boolean;
  last_write_wins?: boolean;
  kind?: 'volume' | 'bucket' | 'shared';
  bucket?: BucketSource | null;
}

/** A volume in a list. `used_by` are running or parked sessions and schedules, as words for people. */
export interface VolumeRow {
  id: string;
  name: string;
  version?: number;
  files?: number;
  size_bytes?: number;
  created_unix_seconds?: number;
  changed_unix_seconds?: number;
  ephemeral?: boolean;
  used_by?: string[];
}

/** A restored container that waits for a session: what a warm pool holds. It costs its machine, and nobody is billed. */
export interface WarmContainer {
  id: string;
  image: string;
  memory_mib?: number;
  age_seconds?: number;
}

/** The instants: `once` at one, `every` so many seconds from `at_unix_seconds` on (0: from when it is saved), or `cron`, five fields read in the IANA `timezone`. */
export interface When {
  kind: 'once' | 'every' | 'cron';
  at_unix_seconds?: number;
  every_seconds?: number;
  cron?: string;
  timezone?: string;
}

/** A worker in a list. */
export interface WorkerRow {
  id: string;
  state: WorkerState;
  inventory: Inventory;
  pid?: number;
  free_gpus?: string[];
  last_seen_seconds?: number;
  snapshots?: SnapshotUsage | null;
  gpu_usage?: GpuUsage[];
}

export type WorkerState =
  | 'joined'
  | 'unreachable'
  | 'lost';
