// Answers are shown as they came. Swagger UI reads JSON and writes it anew, which changes numbers (1.0, and whole ones
// beyond 2^53), and says of JSON in lines that it cannot be parsed.

export function AnswersAsTheyCame() {
  const asItCame = (Original, { React, getComponent }) => (props) => {
    const { content, contentType, headers = {} } = props;
    const isText = typeof content === "string" && content !== "";
    if (!isText || !/json/i.test(contentType) || "content-disposition" in headers) {
      return React.createElement(Original, props);
    }
    const isLines = /ndjson/i.test(contentType);
    const code = {
      language: "json",
      fileName: `response_${Date.now()}.${isLines ? "ndjson" : "json"}`,
      downloadable: true,
      canCopy: true,
    };
    return React.createElement(
      "div",
      null,
      React.createElement("h5", null, "Response body"),
      React.createElement(getComponent("HighlightCode", true), code, isLines ? content : indented(content)),
    );
  };
  return { wrapComponents: { responseBody: asItCame } };
}

// `json` in lines, each string and number as it stands.
function indented(json) {
  const written = [];
  let depth = 0;
  let isFirst = true; // in its array or object
  const breakLine = () => written.push("\n", "  ".repeat(depth));
  for (const token of tokens(json)) {
    if (token === "]" || token === "}") {
      depth -= 1;
      if (!isFirst) breakLine();
      written.push(token);
      isFirst = false;
    } else if (token === ",") {
      written.push(token);
      breakLine();
    } else if (token === ":") {
      written.push(": ");
    } else {
      if (isFirst && depth > 0) breakLine();
      written.push(token);
      isFirst = token === "[" || token === "{";
      depth += isFirst ? 1 : 0;
    }
  }
  return written.join("");
}

function* tokens(json) {
  const other = /[\s{}[\],:"]/g;
  for (let start = 0, end; start < json.length; start = end) {
    if (json[start] === '"') {
      end = endOfString(json, start);
    } else {
      other.lastIndex = start;
      const found = other.exec(json);
      end = found === null ? json.length : Math.max(found.index, start + 1);
    }
    const token = json.slice(start, end);
    if (token.trim() !== "") yield token;
  }
}

function endOfString(json, start) {
  const special = /["\\]/g;
  special.lastIndex = start + 1;
  for (let found; (found = special.exec(json)) !== null; special.lastIndex += 1) {
    if (found[0] === '"') return special.lastIndex;
  }
  return json.length;
}
