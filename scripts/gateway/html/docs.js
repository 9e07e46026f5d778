// Swagger UI over the gateway's own /openapi.json. The key that the user types is kept in memory only.
"use strict";

const form = document.getElementById("key");
const told = document.getElementById("told");
let key = "";

function withKey(request) {
  if (key) request.headers["x-api-key"] = key;
  return request;
}

async function load() {
  const got = await fetch("openapi.json", { headers: key ? { "x-api-key": key } : {} });
  if (got.status === 401) {
    form.hidden = false;
    told.textContent = key ? "The gateway does not know this key." : "";
    return;
  }
  if (!got.ok) {
    told.textContent = `The gateway answered ${got.status}: ${await got.text()}`;
    return;
  }
  form.hidden = true;
  told.textContent = "";
  const spec = await got.json();
  window.SwaggerUIBundle({
    spec, domNode: document.getElementById("reference"), requestInterceptor: withKey, tryItOutEnabled: true,
    docExpansion: "list", defaultModelsExpandDepth: 0, validatorUrl: null, deepLinking: true,
  });
}

async function start() {
  try {
    await load();
  } catch (fault) {
    told.textContent = `The gateway does not answer (${fault.message}).`;
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  key = document.getElementById("key-text").value;
  start();
});
start();
