/** What runs, as the server tells it while this window is visible; and lists that are asked for. */

import { IDisposable } from '@lumino/disposable';
import { ISignal, Signal } from '@lumino/signaling';
import { ErrorInfo, Status } from './protocol';

export type Connection = 'waiting' | 'live' | 'offline' | 'disconnected' | 'logged-out';

const FIRST_REDIAL_MS = 500;
const LAST_REDIAL_MS = 10_000;

/** The part of a browser's WebSocket that is used. */
export interface ISocket {
  onopen: ((event: any) => void) | null;
  onmessage: ((event: { data: any }) => void) | null;
  onclose: ((event: any) => void) | null;
  send(text: string): void;
  close(): void;
}

export interface IPlace {
  dial(): ISocket;
  later(action: () => void, milliseconds: number): number;
  never(timer: number): void;
  /** Whether the server answers, and knows this person no more. */
  loggedOut(): Promise<boolean>;
}

/** One window's WebSocket: dialled while the window is visible, dialled again when it is lost. */
export class LiveModel implements IDisposable {
  constructor(private place: IPlace) {}

  status: Status | null = null;
  connection: Connection = 'waiting';
  error: ErrorInfo | null = null;
  starting = false;

  /** Anything of it is different. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get isDisposed(): boolean {
    return this._disposed;
  }

  /** The window is shown or hidden; a hidden one is told nothing. */
  setVisible(visible: boolean): void {
    this._visible = visible;
    if (visible) {
      this._dial();
    } else {
      this._hangUp();
    }
  }

  /** Look again: something else than the figures decides what is shown. */
  refresh(): void {
    this._changed.emit();
  }

  /** Ask that a gateway is started if there is none. */
  start(): void {
    this._start = true;
    this.starting = this.connection !== 'live';
    this._changed.emit();
    this._tell();
  }

  dispose(): void {
    this._disposed = true;
    this._hangUp();
    Signal.clearData(this);
  }

  private _dial(): void {
    if (this._socket || this._disposed || !this._visible) {
      return;
    }
    this._cancelRedial();
    const socket = this.place.dial();
    this._socket = socket;
    this._open = false;
    socket.onopen = () => {
      this._open = true;
      this._delay = FIRST_REDIAL_MS;
      this._tell();
    };
    socket.onmessage = event => this._take(event.data);
    socket.onclose = () => {
      if (this._socket !== socket) {
        return;
      }
      this._socket = null;
      this._open = false;
      if (this.connection !== 'logged-out') {
        this.connection = 'disconnected';
      }
      this._changed.emit();
      // A browser does not say why a socket was refused: who was logged out is told by an ordinary request.
      void this.place.loggedOut().then(out => {
        const now = out ? 'logged-out' : 'disconnected';
        if (!this._open && !this._disposed && this.connection !== now) {
          this.connection = now;
          this._changed.emit();
        }
      });
      this._timer = this.place.later(() => this._dial(), this._delay);
      this._delay = Math.min(this._delay * 2, LAST_REDIAL_MS);
    };
  }

  private _hangUp(): void {
    this._cancelRedial();
    const socket = this._socket;
    this._socket = null;
    this._open = false;
    socket?.close();
  }

  private _cancelRedial(): void {
    if (this._timer) {
      this.place.never(this._timer);
      this._timer = 0;
    }
  }

  private _tell(): void {
    if (this._socket && this._open) {
      this._socket.send(JSON.stringify({ visible: true, start: this._start }));
      this._start = false;
    }
  }

  private _take(text: string): void {
    const message = JSON.parse(text);
    if (message.t === 'status') {
      this.status = message.status;
      this.error = null;
      this.starting = false;
      this.connection = 'live';
    } else if (message.t === 'offline') {
      this.error = message.error;
      this.starting = message.starting;
      this.connection = 'offline';
    }
    this._changed.emit();
  }

  private _changed = new Signal<this, void>(this);
  private _socket: ISocket | null = null;
  private _open = false;
  private _visible = false;
  private _start = false;
  private _disposed = false;
  private _delay = FIRST_REDIAL_MS;
  private _timer = 0;
}
