import { ISocket, LiveModel } from './live';

class Place {
  sockets: (ISocket & { sent: string[]; closed: boolean })[] = [];
  timers: { action: () => void; milliseconds: number }[] = [];

  dial(): ISocket {
    const socket = {
      sent: [] as string[], closed: false, onopen: null, onmessage: null, onclose: null,
      send(text: string) { this.sent.push(text); },
      close() { this.closed = true; }
    };
    this.sockets.push(socket);
    return socket;
  }

  later(action: () => void, milliseconds: number): number {
    return this.timers.push({ action, milliseconds });
  }

  never(timer: number): void {
    this.timers[timer - 1].action = () => undefined;
  }

  out = false;

  async loggedOut(): Promise<boolean> {
    return this.out;
  }

  get last(): ISocket & { sent: string[]; closed: boolean } {
    return this.sockets[this.sockets.length - 1];
  }
}

function opened(): [LiveModel, Place] {
  const place = new Place();
  const live = new LiveModel(place);
  live.setVisible(true);
  place.last.onopen!({});
  return [live, place];
}

test('a hidden window has no connection, a shown one has one', () => {
  const [live, place] = opened();
  expect(place.last.sent).toEqual(['{"visible":true,"start":false}']);
  live.setVisible(false);
  expect(place.last.closed).toBe(true);
  place.last.onclose!({});
  expect(place.timers).toEqual([]);
  live.setVisible(true);
  expect(place.sockets.length).toBe(2);
});

test('a status ends what was said of errors', () => {
  const [live, place] = opened();
  place.last.onmessage!({ data: '{"t":"offline","error":{"code":"platform.gateway_down","message":"m"},"starting":true}' });
  expect([live.connection, live.error?.message, live.starting]).toEqual(['offline', 'm', true]);
  place.last.onmessage!({ data: '{"t":"status","status":{"sessions":[]}}' });
  expect([live.connection, live.error, live.starting]).toEqual(['live', null, false]);
});

test('a lost connection is dialled again, ever more slowly, and at once when it held', () => {
  const [live, place] = opened();
  for (let turn = 0; turn < 8; turn++) {
    place.last.onclose!({});
    place.timers[place.timers.length - 1].action();
  }
  expect(live.connection).toBe('disconnected');
  expect(place.timers.map(timer => timer.milliseconds)).toEqual([500, 1000, 2000, 4000, 8000, 10000, 10000, 10000]);
  place.last.onopen!({});
  place.last.onclose!({});
  expect(place.timers[place.timers.length - 1].milliseconds).toBe(500);
});

test('a start that is asked for before the connection is made is asked for once', () => {
  const place = new Place();
  const live = new LiveModel(place);
  live.start();
  live.setVisible(true);
  place.last.onopen!({});
  place.last.onclose!({});
  place.timers[0].action();
  place.last.onopen!({});
  expect(place.sockets.map(socket => socket.sent[0])).toEqual(['{"visible":true,"start":true}', '{"visible":true,"start":false}']);
});

test('what was known stays while the server is away', () => {
  const [live, place] = opened();
  place.last.onmessage!({ data: '{"t":"status","status":{"gateway_pid":7}}' });
  place.last.onclose!({});
  expect([live.connection, live.status?.gateway_pid]).toEqual(['disconnected', 7]);
});

test('who is logged out is told so, until the login is back', async () => {
  const [live, place] = opened();
  place.last.onmessage!({ data: '{"t":"status","status":{"sessions":[]}}' });
  place.out = true;
  place.last.onclose!({});
  expect(live.connection).toBe('disconnected');
  await Promise.resolve();
  expect(live.connection).toBe('logged-out');
  place.timers[place.timers.length - 1].action();
  place.last.onclose!({});
  expect(live.connection).toBe('logged-out');
  await Promise.resolve();
  place.out = false;
  place.timers[place.timers.length - 1].action();
  place.last.onopen!({});
  place.last.onmessage!({ data: '{"t":"status","status":{"sessions":[]}}' });
  await Promise.resolve();
  expect(live.connection).toBe('live');
});

test('an answer that comes when the connection is back changes nothing', async () => {
  const [live, place] = opened();
  place.out = true;
  place.last.onclose!({});
  place.timers[place.timers.length - 1].action();
  place.last.onopen!({});
  await Promise.resolve();
  expect(live.connection).toBe('disconnected');
});
