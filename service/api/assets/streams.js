// A stream of events goes on for an hour, and an answer is shown when it has ended: the page listens for a while.
const LISTENED_S = 10;
const MOST_BYTES = 1_000_000;

// As `fetch` does, but of a stream the answer is its beginning, and a failure says what it is: there is no other server
// here of which a browser might keep the answers back, as Swagger UI supposes.
export async function fetchBeginning(url, request) {
  const response = await fetch(url, request).catch(() => {
    throw new Error("The service did not answer. Try again when it is there.");
  });
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
    return response;
  }
  const reader = response.body.getReader();
  let isTimeUp = false;
  const alarm = setTimeout(() => {
    isTimeUp = true;
    reader.cancel();
  }, LISTENED_S * 1000);
  const pieces = [];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    pieces.push(value);
    size += value.length;
    if (size > MOST_BYTES) {
      pieces.push("\n\n: this page shows no more at once; curl does");
      reader.cancel();
      break;
    }
  }
  clearTimeout(alarm);
  if (isTimeUp) pieces.push(`: this page listened for ${LISTENED_S} s; curl goes on`);
  const { status, statusText, headers } = response;
  return new Response(new Blob(pieces), { status, statusText, headers });
}
