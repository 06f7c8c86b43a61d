import { FollowAddress } from "./address.js";
import { AnswersAsTheyCame } from "./answers.js";
import { HtmlAsText } from "./descriptions.js";
import { LinesAsExamples } from "./forms.js";
import { AskAgainWithKey, headersWithKey } from "./keys.js";
import { ShowPluginsAsTheyLoad } from "./refresh.js";
import { fetchBeginning } from "./streams.js";

const DESCRIPTION = "/openapi.json";

SwaggerUIBundle({
  url: DESCRIPTION,
  dom_id: "#docs",
  plugins: [
    (system) => AskAgainWithKey(system, DESCRIPTION),
    AnswersAsTheyCame,
    FollowAddress,
    HtmlAsText,
    LinesAsExamples,
    () => ShowPluginsAsTheyLoad(DESCRIPTION, headersWithKey),
  ],
  deepLinking: true,
  displayRequestDuration: true,
  filter: true,
  validatorUrl: null,
  requestInterceptor: (request) => {
    if (request.loadSpec) {
      Object.assign(request.headers, headersWithKey());
    }
    request.userFetch = fetchBeginning;
    // A file says what it is; the description cannot.
    if (request.headers["Content-Type"] === "*/*" && request.body instanceof File && request.body.type) {
      request.headers["Content-Type"] = request.body.type;
    }
    return request;
  },
});

const dark = matchMedia("(prefers-color-scheme: dark)");
const followScheme = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", followScheme);
followScheme();
