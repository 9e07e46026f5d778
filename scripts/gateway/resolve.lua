-- Finds the version that answers a request. Envoy runs this for each request that names a model; scripts/gateway/traffic.py
-- puts the table TRAFFIC before it, one line a model, so that a request costs the same however many there are.
--
-- A request is addressed (PLACES), its version is pinned or drawn, and it leaves with headers, which no client can send:
--   x-gateway-route     how it goes on: one of the routes in scripts/gateway/routes.py
--   x-gateway-cluster   the version's cluster
--   x-gateway-model, x-gateway-version   whom it is counted for
-- One that failed, and each copy for a shadow, comes back through the inner listener: `again`.

local TOTAL_WEIGHT = 10000
local LATER_MS = 20  -- the request's own time ends so much later, or no attempt would count as out of time
local MOST_NAMES = 20

---- The table ----

local function decoded(text)
  return (text:gsub("%%(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end))
end

local function each(text)
  return (text or ""):gmatch("[^,]+")
end

local function names(text)
  local found = {}
  for name in each(text) do found[#found + 1] = decoded(name) end
  return found
end

local function numbers(text)
  local found = {}
  for name, number in (text or ""):gmatch("([^,:]+):([^,]+)") do
    found[#found + 1] = { version = decoded(name), number = tonumber(number) }
  end
  return found
end

local function pairs_of(text)
  local found = {}
  for name, value in (text or ""):gmatch("([^,:]+):([^,]+)") do found[decoded(name)] = decoded(value) end
  return found
end

-- A line of traffic.py; names are as clients write them, `clusters` as Envoy's clusters are called.
local function parsed(line)
  local name, rest = line:match("^(%S+)(.*)$")
  local field = {}
  for key, value in rest:gmatch("(%S+)=(%S*)") do field[key] = value end
  local model = {
    name = decoded(name), versions = names(field.versions), clusters = {}, explainers = {},
    split = numbers(field.split), shadow = numbers(field.shadow), fallback = names(field.fallback),
    sticky = field.sticky, experiment = field.experiment, timeout_ms = tonumber(field.timeout_ms),
    explain_ms = tonumber(field.explain_ms), labels = decoded(field.labels), keepers = names(field.keepers),
    at = pairs_of(field.at), explains_at = pairs_of(field.explains_at),
  }
  for version in each(field.versions) do model.clusters[decoded(version)] = name .. "|" .. version end
  for version in each(field.explainers) do model.explainers[decoded(version)] = name .. "-explain|" .. version end
  return model
end

local MODELS, SERVED = {}, {}
for line in TRAFFIC:gmatch("[^\n]+") do
  local name = decoded(line:match("^%S+"))
  MODELS[name], SERVED[#SERVED + 1] = line, name
end

-- Lines are read when their model is first asked for.
local function model_named(name)
  local model = MODELS[name]
  if type(model) == "string" then
    model = parsed(model)
    MODELS[name] = model
  end
  return model
end

local function served()
  if #SERVED == 0 then return "none" end
  if #SERVED <= MOST_NAMES then return table.concat(SERVED, ", ") end
  return table.concat(SERVED, ", ", 1, MOST_NAMES) .. " and " .. #SERVED - MOST_NAMES .. " more, see /v1/models"
end

---- Answers of the gateway's own ----

local function quoted(text)
  return '"' .. text:gsub('[%c"\\]', function(char) return string.format("\\u%04x", char:byte()) end) .. '"'
end

local function reply(handle, code, body, more)
  local headers = { [":status"] = tostring(code), ["content-type"] = "application/json" }
  for name, value in pairs(more or {}) do headers[name] = value end
  handle:respond(headers, body)
end

-- In the form that the path's protocol has for errors.
local function refuse(handle, path, error, detail)
  if path:find("^/grpc/") then
    reply(handle, 404, error .. ": " .. detail, { ["grpc-status"] = "5" })
  elseif path:find("^/v2/") then
    reply(handle, 404, '{"error":' .. quoted(error .. ": " .. detail) .. "}")
  else
    reply(handle, 404, '{"error":"' .. error .. '","detail":' .. quoted(detail) .. "}")
  end
end

local function refuse_version(handle, path, model)
  local versions = table.concat(model.versions, ", ")
  refuse(handle, path, "no_such_version", "no such version of " .. model.name .. "; served: " .. versions)
end

-- Whether each of these versions has a worker that can answer, by scripts/gateway/health.py.
local function have_workers(handle, model, versions)
  local call = { [":method"] = "GET", [":path"] = "/workers", [":authority"] = "probes" }
  local headers, body = handle:httpCall("probes", call, nil, 5000)
  local workers = headers[":status"] == "200" and "\n" .. body or ""
  for _, version in ipairs(versions) do
    local _, last = workers:find("\n" .. model.name .. "/" .. version .. "=", 1, true)
    if not last or workers:match("^%d+", last + 1) == "0" then return false end
  end
  return true
end

local function tell_readiness(handle, path, model, version)
  local asked = version and { version } or {}
  if not version then
    for _, share in ipairs(model.split) do asked[#asked + 1] = share.version end
  end
  local ready = have_workers(handle, model, asked)
  if path:find("^/grpc/") then return reply(handle, 200, '{"ready":' .. tostring(ready) .. "}") end
  local parts = { '"name":' .. quoted(model.name), '"ready":' .. tostring(ready) }
  if path:find("^/v1/") then
    local listed = {}
    for i, name in ipairs(model.versions) do listed[i] = quoted(name) end
    table.insert(parts, 2, '"versions":[' .. table.concat(listed, ",") .. "]")
  end
  if ready then return reply(handle, 200, "{" .. table.concat(parts, ",") .. "}") end
  table.insert(parts, 1, '"error":"not_ready: a version with traffic has no worker that is ready"')
  reply(handle, 503, "{" .. table.concat(parts, ",") .. "}", { ["retry-after"] = "1" })
end

---- Where requests arrive ----

-- By a path's first part: pattern of the path (model, version), what is wanted, and the form that the worker is told.
-- A version that a gRPC message leaves out leaves its place empty.
local PLACES = {
  predictions = { { "^/predictions/([^/]+)$", "predict" }, { "^/predictions/([^/]+)/([^/]+)$", "predict" } },
  explanations = { { "^/explanations/([^/]+)$", "explain" }, { "^/explanations/([^/]+)/([^/]+)$", "explain" } },
  v1 = {
    { "^/v1/models/([^/:]+):predict$", "predict" },
    { "^/v1/models/([^/:]+):explain$", "explain" },
    { "^/v1/models/([^/:]+)$", "readiness" },
  },
  v2 = {
    { "^/v2/models/([^/]+)/infer$", "predict", "open" },
    { "^/v2/models/([^/]+)/versions/([^/]+)/infer$", "predict", "open" },
    { "^/v2/models/([^/]+)/ready$", "readiness" },
    { "^/v2/models/([^/]+)/versions/([^/]+)/ready$", "readiness" },
    { "^/v2/models/([^/]+)$", "describe", "open-metadata" },
    { "^/v2/models/([^/]+)/versions/([^/]+)$", "describe", "open-metadata" },
  },
  grpc = {
    { "^/grpc/v2/models/([^/]+)/versions/([^/]*)/infer$", "predict", "open-grpc" },
    { "^/grpc/v2/models/([^/]+)/versions/([^/]*)/ready$", "inside" },
    { "^/grpc/v2/models/([^/]+)/versions/([^/]*)$", "describe", "open-metadata" },
    { "^/grpc/predictions/([^/]+)/([^/]*)$", "predict", "torchserve-grpc" },
  },
}
local BODY_NAMES_MODEL = {
  ["/predict"] = "predict", ["/v1/predict"] = "predict", ["/explain"] = "explain", ["/v1/explain"] = "explain",
  ["/feedback"] = "label",
}
-- Of paths that begin with a model's name and go on in no way that is known.
local BEGINNINGS = {
  "^/predictions/([^/]*)", "^/explanations/([^/]*)", "^/v1/models/([^/:]*)", "^/v2/models/([^/]*)",
  "^/grpc/v2/models/([^/]*)", "^/grpc/predictions/([^/]*)",
}

-- What is wanted, of which model and version, in which form; all nil for a path that names no model.
local function addressed(handle, path)
  local wanted = BODY_NAMES_MODEL[path]
  if wanted then
    local named = handle:streamInfo():dynamicMetadata():get("gateway.body")
    local name = named and named.model
    return wanted, type(name) == "string" and name or MAIN_MODEL
  end
  if path == "/embed" then return "predict", EMBED_MODEL end
  for _, place in ipairs(PLACES[path:match("^/([^/]*)")] or {}) do
    local name, version = path:match(place[1])
    if name then return place[2], name, version ~= "" and version or nil, place[3] end
  end
  for _, beginning in ipairs(BEGINNINGS) do
    local name = path:match(beginning)
    if name then return "nothing", name end
  end
end

local function refuse_model(handle, path)
  local detail = "no such model; served: " .. served()
  if BODY_NAMES_MODEL[path] then
    detail = "no model of the name that the body gives (or " .. MAIN_MODEL .. " if none); served: " .. served()
  elseif path == "/embed" then
    detail = "/embed is answered by a model named " .. EMBED_MODEL .. ", and there is none; served: " .. served()
  end
  refuse(handle, path, "no_such_model", detail)
end

local function refuse_rest(handle, path, model)
  if not path:find("^/v1/") then return refuse_version(handle, path, model) end
  local detail = " takes :predict and :explain after its name, and GET on /v1/models/"
  refuse(handle, path, "no_such_path", model.name .. detail .. model.name)
end

---- Which version ----

-- The product of two 32-bit numbers, modulo 2^32.
local function times(a, b)
  local high = bit.tobit(bit.rshift(a, 16) * bit.band(b, 0xffff))
  return bit.tobit(bit.band(a, 0xffff) * (b % 4294967296) + bit.lshift(high, 16))
end

-- FNV-1a, then MurmurHash3's finalizer: users whose names are alike are not dealt alike.
local function hashed(text)
  local hash = bit.tobit(2166136261)
  for i = 1, #text do hash = times(bit.bxor(hash, text:byte(i)), 16777619) end
  hash = times(bit.bxor(hash, bit.rshift(hash, 16)), 0x85ebca6b)
  hash = times(bit.bxor(hash, bit.rshift(hash, 13)), 0xc2b2ae35)
  return bit.bxor(hash, bit.rshift(hash, 16)) % 4294967296
end

-- Shares lie side by side, the newest version's first, so that a ramp keeps the users who are in it.
local function drawn(model, headers)
  if #model.split == 1 then return model.split[1].version end
  local user = headers:get(model.sticky)
  local place = user and hashed(model.experiment .. "/" .. user) % TOTAL_WEIGHT or math.random(0, TOTAL_WEIGHT - 1)
  for _, share in ipairs(model.split) do
    place = place - share.number
    if place < 0 then return share.version end
  end
end

math.randomseed(tonumber(tostring({}):match("0x(%x+)"), 16) % 2147483648 + os.time())

-- Names of the shadows that get a copy of this request.
local function copied(model)
  local found = {}
  for _, share in ipairs(model.shadow) do
    if math.random() * 1000000 < share.number then found[#found + 1] = share.version end
  end
  return found
end

---- How the request goes on ----

local function send(handle, headers, route, model, version, cluster, attempt_ms, whole_ms)
  headers:replace("x-gateway-route", route)
  headers:replace("x-gateway-cluster", cluster)
  headers:replace("x-gateway-model", model.name)
  headers:replace("x-gateway-version", version)
  headers:replace("x-request-timeout-ms", string.format("%.0f", attempt_ms))
  headers:replace("x-envoy-upstream-rq-per-try-timeout-ms", string.format("%.0f", attempt_ms))
  headers:replace("x-envoy-upstream-rq-timeout-ms", string.format("%.0f", whole_ms + LATER_MS))
  handle:clearRouteCache()
end

local function copy_to(headers, versions, first)
  headers:replace("x-gateway-copy", "fallback")
  headers:replace("x-gateway-copies", table.concat(versions, ",", first))
end

-- Where in the server a version is: under its own names, or in a worker that it shares with others.
local function place(model, version)
  return model.at[version] or model.name .. "/" .. version
end

-- Such a worker may have to load a version: there are routes that wait for it.
local function waiting(route, address)
  return address and route .. "-shared" or route
end

local function predict(handle, headers, model, version, query, wanted, form, over)
  local pinned = version ~= nil
  version = version or drawn(model, headers)
  headers:replace(":path", "/predictions/" .. place(model, version) .. query)
  headers:replace("x-model-version", version)
  local cluster, whole_ms = model.clusters[version], model.timeout_ms
  local route, attempt_ms = pinned and "pinned" or "split", whole_ms
  if wanted == "describe" then
    route = "describe"
  elseif not pinned then
    if #model.fallback > 0 then route, cluster, attempt_ms = "guarded", cluster .. "|guarded", whole_ms / 2 end
    if model.experiment ~= "" then headers:replace("x-experiment", model.experiment) end
    local copies = copied(model)
    if copies[1] then copy_to(headers, copies, 1) end
  end
  if form then headers:replace("x-inference-protocol", form) end
  if route ~= "guarded" then route = waiting(route, model.at[version]) end
  send(handle, headers, route .. over, model, version, cluster, attempt_ms, whole_ms)
end

local function explain(handle, headers, model, version, query)
  version = version or drawn(model, headers)
  local own = model.explainers[version] and model.name .. "-explain/" .. version
  local shared = own and model.explains_at[version] or not own and model.at[version]
  headers:replace(":path", "/explanations/" .. (shared or own or place(model, version)) .. query)
  headers:replace("x-model-version", version)
  local cluster = model.explainers[version] or model.clusters[version]
  send(handle, headers, waiting("explain", shared), model, version, cluster, model.explain_ms, model.explain_ms)
end

-- A worker of the model takes true labels to the prediction log, no matter of which version.
local function label(handle, headers, model, query)
  local route, cluster = waiting("label", model.at[model.labels]), model.clusters[model.labels]
  headers:replace(":path", "/predictions/" .. place(model, model.labels) .. "/feedback" .. query)
  headers:remove("x-model-version")
  send(handle, headers, route, model, model.labels, cluster, model.timeout_ms, model.timeout_ms)
end

local function unavailable(handle)
  reply(handle, 503, "")
end

-- A copy: the first of the shadows that are named gets it, and a copy of it goes to the others.
local function shadow(handle, headers, model, shadows, query)
  local first, others = shadows:match("^([^,]+),?(.*)$")
  if not model.clusters[first] then return unavailable(handle) end
  headers:replace(":path", "/predictions/" .. place(model, first) .. query)
  headers:replace("x-shadow-version", first)
  if others ~= "" then copy_to(headers, { others }, 1) else headers:remove("x-gateway-copy") end
  local cluster = model.clusters[first] .. "|shadow"
  send(handle, headers, "shadow", model, first, cluster, model.timeout_ms, model.timeout_ms)
end

-- The place in the fallback list after the version that failed; its beginning for one that is not in it.
local function turn_after(model, failed)
  for turn, version in ipairs(model.fallback) do
    if version == failed then return turn + 1 end
  end
  return 1
end

-- To a worker of another version, which computes nothing, and looks into the cache.
local function stale(handle, headers, model, failed, query)
  local keeper = model.keepers[1] ~= failed and model.keepers[1] or model.keepers[2]
  if not keeper then return unavailable(handle) end
  headers:replace(":path", "/predictions/" .. place(model, keeper) .. query)
  headers:replace("x-fallback-stale", "1")
  headers:replace("x-gateway-fallback", "stale")
  send(handle, headers, "stale", model, keeper, model.clusters[keeper], model.timeout_ms, model.timeout_ms)
end

-- Each fallback has half of the time that the one above had, the last in the list all that is left.
local function fall_back(handle, headers, model, failed, query)
  local turn = turn_after(model, failed)
  local version = model.fallback[turn]
  if model.clusters[failed] and not headers:get("x-fallback-from") then headers:replace("x-fallback-from", failed) end
  if version == "stale" then return stale(handle, headers, model, failed, query) end
  local cluster = model.clusters[version]
  if not cluster then return unavailable(handle) end
  headers:replace(":path", "/predictions/" .. place(model, version) .. query)
  headers:replace("x-model-version", version)
  headers:replace("x-gateway-fallback", version)
  local whole_ms = model.timeout_ms / 2 ^ turn
  local last = turn == #model.fallback
  if last and model.at[version] then
    return send(handle, headers, "fallback-shared", model, version, cluster, whole_ms, whole_ms)
  end
  send(handle, headers, "fallback", model, version, cluster .. "|guarded", last and whole_ms or whole_ms / 2, whole_ms)
end

-- On the inner listener: a copy, or a request that the version in its path failed.
local function again(handle, headers, path, query)
  local name, version = path:match("^/grpc/v2/models/([^/]+)/versions/([^/]*)/ready$")
  if name then
    local model = model_named(name)
    if not model or (version ~= "" and not model.clusters[version]) then return reply(handle, 200, '{"ready":false}') end
    return tell_readiness(handle, path, model, version ~= "" and version or nil)
  end
  name, version = path:match("^/predictions/([^/]+)/([^/]+)$")
  if not name then name, version = path:match("^/predictions/_shared%-[^/]+/[^/]+/([^/]+)/([^/]+)$") end
  local model = name and model_named(name)
  if not model then return unavailable(handle) end
  local copies = headers:get("x-gateway-copies")
  if headers:get("x-shadow-version") then return shadow(handle, headers, model, copies, query) end
  fall_back(handle, headers, model, version, query)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path, query = headers:get(":path"):match("^([^?]*)(.*)$")
  if headers:get("x-gateway-model") then return again(handle, headers, path, query) end
  local wanted, name, version, form = addressed(handle, path)
  if not wanted then return end
  if wanted == "inside" then
    headers:replace("x-gateway-model", name)
    headers:replace("x-gateway-route", "inside")
    return handle:clearRouteCache()
  end
  local model = model_named(name)
  if not model then return refuse_model(handle, path) end
  if wanted == "nothing" then return refuse_rest(handle, path, model) end
  if wanted == "label" then return label(handle, headers, model, query) end
  if wanted ~= "readiness" then version = version or headers:get("x-model-version") end
  if version and not model.clusters[version] then return refuse_version(handle, path, model) end
  if wanted == "readiness" then return tell_readiness(handle, path, model, version) end
  if wanted == "explain" then return explain(handle, headers, model, version, query) end
  predict(handle, headers, model, version, query, wanted, form, path:find("^/grpc/") and "-grpc" or "")
end
