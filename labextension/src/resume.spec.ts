import { localPath, resumeCode } from './resume';

jest.mock('@jupyterlab/coreutils', () => ({ PageConfig: { getOption: () => '' } }));

test('a path below the server\'s root is the server\'s', () => {
  expect(localPath('/home/ann/books/a b.ipynb', 'file:///home/ann/books')).toBe('a b.ipynb');
  expect(localPath('/home/ann/books/x/a.ipynb', 'file:///home/ann/b%6foks/')).toBe('x/a.ipynb');
  expect(localPath('/elsewhere/a.ipynb', 'file:///home/ann/books')).toBe('/elsewhere/a.ipynb');
});

test('a session\'s name is one word of the line, whatever it has', () => {
  expect(resumeCode('default')).toBe(`get_ipython().run_line_magic("modal", "resume session='default'")`);
  expect(resumeCode(`a'b "c"`)).toBe(`get_ipython().run_line_magic("modal", "resume session='a'\\"'\\"'b \\"c\\"'")`);
});
