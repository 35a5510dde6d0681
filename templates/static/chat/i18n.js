// The words of the chat page in Chinese and English, and the switch between them.
// Elements say which words they show with data-i18n attributes, so one walk over the document changes the language.

const WORDS = {
  "zh-Hans": {
    appName: "对话",
    signIn: "登录",
    signInLead: "登录后继续你的对话。",
    username: "用户名",
    password: "密码",
    site: "站点",
    siteHint: "你所在组织的站点标识",
    showPassword: "显示密码",
    hidePassword: "隐藏密码",
    signingIn: "正在登录…",
    signOut: "退出登录",
    signedOut: "登录已过期，请重新登录。",
    badSignIn: "用户名、密码或站点不正确。",
    needBoth: "请填写用户名、密码和站点。",
    waitingTitle: "正在等待批准",
    waitingText: "你的账号已经登记。站点管理员批准之后，就可以开始对话；这个页面会自动进入，不需要刷新。",
    rejectedTitle: "申请没有通过",
    rejectedText: "站点管理员没有批准这个账号。如有疑问，请联系你的管理员。",
    suspendedTitle: "账号已暂停使用",
    suspendedText: "站点管理员暂停了这个账号。你的对话都还在，如有疑问，请联系你的管理员。",
    unreachableTitle: "暂时连不上服务",
    unreachableText: "你仍然是登录状态，写过的内容都在。这里每隔几秒会自动再试。",
    checkAgain: "再看一次",
    stillWaiting: "还没有批准，请稍后再看。",
    skipToComposer: "跳到输入框",
    conversations: "对话列表",
    openConversations: "打开对话列表",
    closeConversations: "关闭对话列表",
    newChat: "新对话",
    searchConversations: "搜索对话",
    clearSearch: "清除搜索",
    showArchived: "已归档",
    showActive: "返回全部对话",
    pinned: "置顶",
    today: "今天",
    yesterday: "昨天",
    thisWeek: "七天内",
    earlier: "更早",
    archivedGroup: "已归档",
    results: "搜索结果",
    loadMore: "加载更多",
    loading: "正在加载…",
    noConversations: "还没有对话。写下第一个问题就会出现在这里。",
    noArchived: "没有归档的对话。",
    noResults: "没有找到相关的对话。",
    listFailed: "对话列表没有加载成功。",
    tryAgain: "重试",
    untitled: "未命名的对话",
    more: "“{title}”的更多操作",
    replying: "正在回复",
    rename: "重命名",
    pin: "置顶",
    unpin: "取消置顶",
    archive: "归档",
    unarchive: "移出归档",
    remove: "删除",
    renameTitle: "重命名对话",
    newTitle: "新的标题",
    save: "保存",
    cancel: "取消",
    removeTitle: "删除这个对话？",
    removeText: "“{title}”会立刻从列表中消失，之后无法恢复。",
    removed: "对话已删除",
    archivedDone: "已归档",
    unarchivedDone: "已移出归档",
    greeting: "今天想聊点什么？",
    greetingNamed: "{name}，今天想聊点什么？",
    greetingText: "写下问题就好。回复边写边存，断网、刷新、换设备，都不会丢一个字。",
    suggestion1: "把一段想法整理成清楚的三点",
    suggestion2: "用简单的话解释一个概念",
    suggestion3: "帮我起草一封得体的邮件",
    messages: "消息",
    olderMessages: "加载更早的消息",
    messagesFailed: "消息没有加载成功。",
    conversationGone: "这个对话不存在，或者已经删除。",
    youSaid: "你说",
    assistantSaid: "助手回复",
    composerLabel: "消息",
    composerPlaceholder: "说点什么…",
    composerHint: "Enter 发送，Shift + Enter 换行",
    aiNotice: "内容由 AI 生成，请核实重要信息",
    send: "发送",
    stop: "停止生成",
    stopping: "正在停止…",
    charsLeft: "还可输入 {count} 字",
    charsOver: "超出 {count} 字，请缩短后再发送",
    thinking: "正在思考",
    leansOn: "依据",
    reasoning: "思考过程",
    reasoningLive: "正在思考…",
    writing: "正在回复…",
    replyDone: "回复完成",
    jumpToLatest: "回到最新",
    notSent: "没有发送成功：{reason}",
    sendAgain: "重新发送",
    sendWaiting: "网络不通，正在重新发送…",
    editAgain: "取回修改",
    reconnecting: "连接断开，正在接着读…",
    reconnectIn: "连接断开，{seconds} 秒后接着读。已收到的内容都在。",
    reconnectNow: "现在重连",
    followFailed: "暂时读不到这条回复：{reason}",
    statusStopped: "已停止",
    statusTruncated: "回复到达长度上限，后面的内容没有生成。",
    statusFiltered: "回复的后半部分被内容审核拦下。",
    statusFailed: "AI 服务暂时不可用",
    statusInterrupted: "生成被中断，已经写下的内容都保存了。",
    emptyReply: "没有内容",
    regenerate: "重新生成",
    copy: "复制",
    copied: "已复制",
    copyFailed: "复制没有成功",
    copyCode: "复制代码",
    feedbackUp: "有帮助",
    feedbackDown: "没有帮助",
    feedbackThanks: "感谢反馈",
    previousVersion: "上一个版本",
    nextVersion: "下一个版本",
    version: "第 {index} 个版本，共 {count} 个",
    running: "上一条回复还没有写完，先等它写完或者停止它。",
    offline: "网络已断开",
    online: "网络已恢复",
    networkError: "网络连接不上，请检查网络后再试。",
    serverError: "服务暂时出了问题（{status}），请稍后再试。",
    language: "English",
  },
  en: {
    appName: "Chat",
    signIn: "Sign in",
    signInLead: "Sign in to carry on your conversations.",
    username: "Username",
    password: "Password",
    site: "Site",
    siteHint: "The short name of your organisation's site",
    showPassword: "Show password",
    hidePassword: "Hide password",
    signingIn: "Signing in…",
    signOut: "Sign out",
    signedOut: "Your sign-in has expired. Please sign in again.",
    badSignIn: "The username, password or site is not right.",
    needBoth: "Please fill in username, password and site.",
    waitingTitle: "Waiting for approval",
    waitingText: "Your account is registered. Once a manager of the site approves it you can start chatting; this page will let you in by itself.",
    rejectedTitle: "Not approved",
    rejectedText: "A manager of the site did not approve this account. If that seems wrong, please contact them.",
    suspendedTitle: "Account suspended",
    suspendedText: "A manager of the site has suspended this account. Your conversations are kept; please contact them.",
    unreachableTitle: "The service cannot be reached",
    unreachableText: "You are still signed in, and nothing you wrote is lost. This page tries again every few seconds.",
    checkAgain: "Check again",
    stillWaiting: "Not approved yet. Please look again later.",
    skipToComposer: "Skip to the message box",
    conversations: "Conversations",
    openConversations: "Open conversations",
    closeConversations: "Close conversations",
    newChat: "New chat",
    searchConversations: "Search conversations",
    clearSearch: "Clear search",
    showArchived: "Archived",
    showActive: "Back to all conversations",
    pinned: "Pinned",
    today: "Today",
    yesterday: "Yesterday",
    thisWeek: "Last 7 days",
    earlier: "Earlier",
    archivedGroup: "Archived",
    results: "Results",
    loadMore: "Load more",
    loading: "Loading…",
    noConversations: "No conversations yet. Your first question will appear here.",
    noArchived: "No archived conversations.",
    noResults: "No conversation matches.",
    listFailed: "The conversations could not be loaded.",
    tryAgain: "Try again",
    untitled: "Untitled conversation",
    more: "More actions for “{title}”",
    replying: "Replying",
    rename: "Rename",
    pin: "Pin",
    unpin: "Unpin",
    archive: "Archive",
    unarchive: "Move out of archive",
    remove: "Delete",
    renameTitle: "Rename conversation",
    newTitle: "New title",
    save: "Save",
    cancel: "Cancel",
    removeTitle: "Delete this conversation?",
    removeText: "“{title}” disappears from your list at once and cannot be brought back.",
    removed: "Conversation deleted",
    archivedDone: "Archived",
    unarchivedDone: "Moved out of the archive",
    greeting: "What is on your mind?",
    greetingNamed: "What is on your mind, {name}?",
    greetingText: "Just ask. Replies are saved as they are written: a lost connection, a reload or another device never costs you a word.",
    suggestion1: "Turn a rough idea into three clear points",
    suggestion2: "Explain a concept in simple words",
    suggestion3: "Help me draft a considerate email",
    messages: "Messages",
    olderMessages: "Load earlier messages",
    messagesFailed: "The messages could not be loaded.",
    conversationGone: "This conversation does not exist or has been deleted.",
    youSaid: "You said",
    assistantSaid: "The assistant replied",
    composerLabel: "Message",
    composerPlaceholder: "Say something…",
    composerHint: "Enter to send, Shift + Enter for a new line",
    aiNotice: "AI can be wrong. Please check what matters.",
    send: "Send",
    stop: "Stop generating",
    stopping: "Stopping…",
    charsLeft: "{count} characters left",
    charsOver: "{count} characters too long. Please shorten it to send.",
    thinking: "Thinking",
    leansOn: "Based on",
    reasoning: "Reasoning",
    reasoningLive: "Thinking…",
    writing: "Replying…",
    replyDone: "Reply finished",
    jumpToLatest: "Jump to latest",
    notSent: "Not sent: {reason}",
    sendAgain: "Send again",
    sendWaiting: "No connection. Sending again…",
    editAgain: "Take back and edit",
    reconnecting: "Connection lost. Reading on…",
    reconnectIn: "Connection lost. Reading on in {seconds} s. Nothing received is lost.",
    reconnectNow: "Reconnect now",
    followFailed: "This reply cannot be read right now: {reason}",
    statusStopped: "Stopped",
    statusTruncated: "The reply reached its length limit and ends here.",
    statusFiltered: "The rest of the reply was held back by the content filter.",
    statusFailed: "The AI service is unavailable right now",
    statusInterrupted: "The reply was interrupted. Everything written so far is saved.",
    emptyReply: "No content",
    regenerate: "Regenerate",
    copy: "Copy",
    copied: "Copied",
    copyFailed: "Could not copy",
    copyCode: "Copy code",
    feedbackUp: "Helpful",
    feedbackDown: "Not helpful",
    feedbackThanks: "Thank you for the feedback",
    previousVersion: "Previous version",
    nextVersion: "Next version",
    version: "Version {index} of {count}",
    running: "The previous reply is still being written. Wait for it, or stop it first.",
    offline: "You are offline",
    online: "You are back online",
    networkError: "The network cannot be reached. Please check it and try again.",
    serverError: "Something went wrong on the server ({status}). Please try again later.",
    language: "中文",
  },
};

const STORED = "chat.language";

function firstLanguage() {
  const stored = localStorage.getItem(STORED);
  if (stored in WORDS) return stored;
  return (navigator.language || "").toLowerCase().startsWith("en") ? "en" : "zh-Hans";
}

let current = firstLanguage();

/** The language in use: "zh-Hans" or "en"; also the value of Accept-Language. */
export function language() {
  return current;
}

/** The words for a key, with {names} filled in. */
export function t(key, values = {}) {
  const words = WORDS[current][key] ?? key;
  return words.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

/** Make an element show the words of a key, now and after every change of language. */
export function say(element, key, values) {
  element.dataset.i18n = key;
  if (values) element.dataset.i18nValues = JSON.stringify(values);
  else delete element.dataset.i18nValues;
  element.textContent = t(key, values);
  return element;
}

/** Give an element an accessible name and a tooltip that follow the language. */
export function label(element, key, values) {
  element.dataset.i18nLabel = key;
  if (values) element.dataset.i18nLabelValues = JSON.stringify(values);
  else delete element.dataset.i18nLabelValues;
  const words = t(key, values);
  element.setAttribute("aria-label", words);
  if (element.tagName === "BUTTON") element.title = words;
  return element;
}

/** Make a <time> show a moment in the manner of the language. */
export function sayTime(element, iso) {
  const moment = new Date(iso);
  if (Number.isNaN(moment.getTime())) return element;
  element.dataset.i18nTime = iso;
  element.dateTime = iso;
  const now = new Date();
  const sameDay = moment.toDateString() === now.toDateString();
  const clock = { hour: "2-digit", minute: "2-digit", hour12: false };
  const day = { month: "short", day: "numeric" };
  if (moment.getFullYear() !== now.getFullYear()) day.year = "numeric";
  const locale = current === "en" ? "en-GB" : "zh-CN";
  element.textContent = moment.toLocaleString(locale, sameDay ? clock : { ...day, ...clock });
  element.title = moment.toLocaleString(locale);
  return element;
}

/** Show every element under root in the language in use. */
export function translate(root = document) {
  const values = (text) => (text ? JSON.parse(text) : undefined);
  for (const element of root.querySelectorAll("[data-i18n]")) {
    element.textContent = t(element.dataset.i18n, values(element.dataset.i18nValues));
  }
  for (const element of root.querySelectorAll("[data-i18n-label]")) {
    label(element, element.dataset.i18nLabel, values(element.dataset.i18nLabelValues));
  }
  for (const element of root.querySelectorAll("[data-i18n-placeholder]")) {
    element.placeholder = t(element.dataset.i18nPlaceholder);
  }
  for (const element of root.querySelectorAll("[data-i18n-time]")) {
    sayTime(element, element.dataset.i18nTime);
  }
  document.documentElement.lang = current;
}

/** Change to the other language and remember it. */
export function switchLanguage() {
  current = current === "en" ? "zh-Hans" : "en";
  localStorage.setItem(STORED, current);
  translate();
}
