import { AnswersAsTheyCame } from "./answers.js";
import { fetchBeginning } from "./streams.js";

// The key is kept by this page alone and gone with it. The description is asked for again with it: it tells the
// plugins only to those who may list them.
const DESCRIPTION = "/openapi.json";
let key;

function AskAgainWithKey(system) {
  const askAgain = (original) => (...args) => {
    const done = original(...args);
    key = system.authSelectors.authorized().getIn(["apiKey", "value"]);
    system.specActions.download(DESCRIPTION);
    return done;
  };
  return { statePlugins: { auth: { wrapActions: { authorize: askAgain, logout: askAgain } } } };
}

SwaggerUIBundle({
  url: DESCRIPTION,
  dom_id: "#docs",
  plugins: [AskAgainWithKey, AnswersAsTheyCame],
  deepLinking: true,
  displayRequestDuration: true,
  filter: true,
  validatorUrl: null,
  requestInterceptor: (request) => {
    if (request.loadSpec && key) {
      request.headers.Authorization = `Bearer ${key}`;
    }
    request.userFetch = fetchBeginning;
    // A file says what it is; the description cannot.
    if (request.headers["Content-Type"] === "*/*" && request.body instanceof File && request.body.type) {
      request.headers["Content-Type"] = request.body.type;
    }
    return request;
  },
});
