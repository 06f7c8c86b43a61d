// Descriptions are Markdown without HTML. Those of plugins are docstrings, where List<int> and <title> are words: Swagger
// UI takes them for elements, so that they vanish, and shows pictures and fields that are none of this page.

export function HtmlAsText() {
  const asText = (Original, { React }) => (props) =>
    React.createElement(Original, { ...props, source: withoutHtml(props.source) });
  return { wrapComponents: { Markdown: asText } };
}

// In code, which stands in backticks or is indented behind an empty line, Markdown itself takes "<" for a letter.
const CODE_OR_TAG = /(`+)(?!`)[^]*?[^`]\1(?!`)|(?<=^|\n[ \t]*\n)(?:(?: {4}|\t).*\n?)+|<(?=[a-z/!?])/gi;

const withoutHtml = (source) => source?.replace?.(CODE_OR_TAG, (found) => (found === "<" ? "&lt;" : found));
