import { gpuOf, kinds, withGpu } from './magic_cell';
import { Status } from './protocol';

test('what a cell asks for', () => {
  expect(['x = 1', '%%modal', '%%modal gpu=A100', '\n  %%modal cpu=2 --gpu H100:2', '%%gpu --gpu="H100, A100"\nx', '%%modalx gpu=T4', ''].map(gpuOf)).toEqual([
    null, '', 'A100', 'H100:2', 'H100, A100', null, null
  ]);
});

test.each([
  ['x = 1', 'A100', '%%modal gpu=A100\nx = 1'],
  ['x = 1', '', '%%modal\nx = 1'],
  ['%%time\nx = 1', 'T4', '%%modal gpu=T4\n%%time\nx = 1'],
  ['%%modal gpu=A100 session=a\nx', 'H100:2', '%%modal gpu=H100:2 session=a\nx'],
  ['%%modal session=a gpu=A100\nx', 'T4', '%%modal session=a gpu=T4\nx'],
  ['%%modal --gpu A100 --memory 8GiB\nx', 'T4', '%%modal gpu=T4 --memory 8GiB\nx'],
  ['%%modal --gpu="H100, A100" in=x\n', 'any', '%%modal gpu=any in=x\n'],
  ['%%modal gpu=A100', '', '%%modal'],
  ['%%modal memory=8GiB\nx', 'T4', '%%modal gpu=T4 memory=8GiB\nx'],
  ['%%modal gpu=$& x', 'T4', '%%modal gpu=T4 x'],
  ['\n%%gpu gpu=A100\nx', 'T4', '\n%%gpu gpu=T4\nx'],
  ['%%modal gpu=A100 session=a\nx', null, 'x'],
  ['%%modal gpu=A100', null, ''],
  ['x = "%%modal"', null, 'x = "%%modal"'],
  ['x', 'H100, A100', '%%modal gpu="H100, A100"\nx']
])('%j with %j', (source, gpu, wanted) => {
  expect(withGpu(source, gpu)).toBe(wanted);
  expect(gpuOf(wanted)).toBe(gpu);
});

test('the fleet, the cheapest first', () => {
  const gpu = (type: string, uuid: string, simulated = false) => ({ index: 0, uuid, type, name: type, simulated });
  const worker = (id: string, gpus: any[], free: string[], state = 'joined') =>
    ({ id, state, inventory: { hostname: id, cpu_cores: 1, memory_mib: 1, gpus }, free_gpus: free }) as any;
  const status = {
    workers: [
      worker('a', [gpu('H100', '1'), gpu('H100', '2'), gpu('X', '3')], ['2']),
      worker('b', [gpu('T4', '4', true), gpu('H100', '5')], ['4', '5']),
      worker('c', [gpu('L4', '6')], ['6'], 'lost')
    ],
    gpu_usd_per_second: { H100: '0.001', T4: '0.0002' }
  } as unknown as Status;
  expect(kinds(status).map(k => [k.type, k.free, k.total, k.most, k.simulated])).toEqual([
    ['T4', 1, 1, 1, true], ['H100', 2, 3, 2, false], ['X', 0, 1, 1, false]
  ]);
  expect(kinds(null)).toEqual([]);
});
