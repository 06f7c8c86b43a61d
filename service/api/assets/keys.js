// The key is kept by the page alone and gone with it. One that the service refuses is not taken, and the dialog says
// why. The description is asked for again with it: it tells the plugins only to those who may list them.
import { refresh } from "./refresh.js";

const SCHEME = "apiKey";
const ANY_KEY_MAY = "/v1/plugins";
let key;

export const headersWithKey = () => (key ? { Authorization: `Bearer ${key}` } : {});

export function AskAgainWithKey(system, description) {
  const take = (done, value) => {
    key = value;
    refresh(system, description, headersWithKey());
    return done;
  };
  const authorize = (original) => async (authorization) => {
    const value = authorization[SCHEME]?.value?.trim();
    const refusal = await refusalOf(value);
    system.errActions.clear({ authId: SCHEME, type: "auth", source: "auth" });
    if (refusal) {
      return system.errActions.newAuthErr({ authId: SCHEME, level: "error", source: "auth", message: refusal });
    }
    return take(original(authorization), value);
  };
  const logout = (original) => (names) => take(original(names), undefined);
  return { statePlugins: { auth: { wrapActions: { authorize, logout } } } };
}

async function refusalOf(value) {
  if (!/^[\x21-\x7e]+$/.test(value ?? "")) {
    return "This is no API key. One begins with jsk_ and has letters, digits, _ and - only.";
  }
  try {
    const answer = await fetch(ANY_KEY_MAY, { headers: { Authorization: `Bearer ${value}` } });
    return answer.ok ? null : (await answer.json()).detail;
  } catch {
    return "The service did not answer, so the key could not be tried. Try again when it is there.";
  }
}
