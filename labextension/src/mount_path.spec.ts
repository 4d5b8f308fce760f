import { pathProblem } from './mount_path';

test.each<[string, string | null]>([
  ['/data', null], ["/it's here/x.y", null], ['/dätä', null],
  ['/a,b', 'mark'], ['/a:b', 'mark'], ['/a"b', 'mark'], ['/a\\b', 'mark'], ['/a\nb', 'mark'], ['/a\u202eb', 'mark'], ['/x,/y:z', 'mark'],
  ['/', 'part'], ['//a', 'part'], ['/a/', 'part'], ['/a/../b', 'part'], ['/.', 'part'],
  ['/used', 'taken']
])('%j: %s', (path, problem) => {
  expect(pathProblem(path, ['/used'])).toBe(problem);
});
